// Light colouring of code: words, strings, numbers, comments. Line by line, so that code can grow cheaply.

const words = (text) => new Set(text.split(" "));
const C_LIKE = { line: "//", block: ["/*", "*/"], quotes: "\"'" };

const LANGUAGES = {
  python: {
    line: "#",
    quotes: "\"'",
    long: ['"""', "'''"],
    prefix: /[rRbBfFuU]{1,2}(?=["'])/y,
    keywords: words(
      "and as assert async await break case class continue def del elif else except finally for from global if import in is lambda match nonlocal not or pass raise return try while with yield True False None self",
    ),
  },
  javascript: {
    ...C_LIKE,
    long: ["`"],
    keywords: words(
      "abstract any as async await boolean break case catch class const continue debugger declare default delete do else enum export extends false finally for from function get if implements import in instanceof interface keyof let namespace never new null number of private protected public readonly return set static string super switch this throw true try type typeof undefined unknown var void while yield",
    ),
  },
  c: {
    ...C_LIKE,
    directive: /^\s*#\s*\w+/,
    keywords: words(
      "abstract alignas alignof auto base bool boolean break byte case catch char class const constexpr continue decltype default defer delete do double else enum explicit export extends extern false final finally float fn for foreach friend func go goto if implements import in inline instanceof int interface internal let long map mut mutable namespace new nil noexcept null nullptr operator override package private protected public range readonly ref register return sealed short signed sizeof static string struct super switch synchronized template this throw throws trait true try type typedef typename union unsafe unsigned using val var virtual void volatile where while with yield as async await crate dyn impl loop match mod move pub self Self use i8 i16 i32 i64 u8 u16 u32 u64 usize isize f32 f64 str size_t uint8_t int32_t int64_t uint32_t uint64_t chan select fun when object data companion guard protocol extension",
    ),
  },
  shell: {
    line: "#",
    quotes: "\"'",
    variable: /\$(?:\{[^}]*\}|[\w@#?*!$-]+)/y,
    flag: /(?<=\s)--?[A-Za-z][\w-]*/y,
    keywords: words(
      "if then else elif fi for while until do done case esac in function return local export source alias unset set cd echo exit sudo",
    ),
  },
  sql: {
    line: "--",
    block: ["/*", "*/"],
    quotes: "'\"",
    fold: true,
    keywords: words(
      "add all alter and as asc begin between by case check column commit constraint create cross database default delete desc distinct drop else end except exists foreign from full group having if in index inner insert intersect into is join key left like limit not null offset on or order outer over partition primary references returning right rollback row rows select set table then transaction trigger true false union unique update using values view when where window with integer int bigint text varchar boolean date timestamp numeric serial",
    ),
  },
  json: { quotes: '"', property: /"(?:[^"\\]|\\.)*"(?=\s*:)/y, keywords: words("true false null") },
  yaml: {
    line: "#",
    quotes: "\"'",
    property: /(?<=^\s*(?:- )?)[\w.\/-]+(?=\s*:(?:\s|$))/y,
    keywords: words("true false null yes no on off"),
  },
  toml: {
    line: "#",
    quotes: "\"'",
    property: /(?<=^\s*)[\w.-]+(?=\s*=)/y,
    directive: /^\s*\[.*\]\s*$/,
    keywords: words("true false"),
  },
  css: {
    block: ["/*", "*/"],
    quotes: "\"'",
    property: /(?<=[{;]\s*|^\s*)[\w-]+(?=\s*:)/y,
    variable: /--[\w-]+|[.#@][A-Za-z][\w-]*/y,
    keywords: words("important inherit initial none auto"),
  },
  ruby: {
    line: "#",
    quotes: "\"'",
    variable: /[@:$][A-Za-z_]\w*/y,
    keywords: words(
      "alias and begin break case class def do else elsif end ensure false for if in module next nil not or raise redo require rescue retry return self super then true unless until when while yield",
    ),
  },
  markup: { block: ["<!--", "-->"], markup: true, quotes: "\"'", keywords: new Set() },
  diff: { diff: true, keywords: new Set() },
};

const NAMES = {
  py: "python",
  python3: "python",
  pycon: "python",
  js: "javascript",
  jsx: "javascript",
  mjs: "javascript",
  ts: "javascript",
  tsx: "javascript",
  typescript: "javascript",
  node: "javascript",
  "c++": "c",
  cpp: "c",
  cc: "c",
  h: "c",
  hpp: "c",
  cs: "c",
  csharp: "c",
  "c#": "c",
  java: "c",
  go: "c",
  golang: "c",
  rust: "c",
  rs: "c",
  kotlin: "c",
  kt: "c",
  swift: "c",
  scala: "c",
  php: "c",
  dart: "c",
  cuda: "c",
  zig: "c",
  bash: "shell",
  sh: "shell",
  zsh: "shell",
  console: "shell",
  "shell-session": "shell",
  dockerfile: "shell",
  makefile: "shell",
  postgresql: "sql",
  mysql: "sql",
  sqlite: "sql",
  json5: "json",
  jsonc: "json",
  jsonl: "json",
  yml: "yaml",
  ini: "toml",
  cfg: "toml",
  scss: "css",
  less: "css",
  rb: "ruby",
  html: "markup",
  xml: "markup",
  svg: "markup",
  vue: "markup",
  patch: "diff",
};

const NUMBER = /(?:0[xX][\da-fA-F_]+|0[bB][01_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?)[a-zA-Z]{0,3}(?![\w])/y;
const WORD = /[A-Za-z_][\w]*/y;
const TAG = /<\/?[A-Za-z][\w:-]*|\/?>/y;
const ATTRIBUTE = /[A-Za-z_:@][\w:.-]*(?==)/y;
const MAX_LINE = 2000; // characters; a longer line is data and stays plain

/** The language that a fence's word names, or "" for one that is not coloured. */
export function languageOf(name) {
  const lower = name.toLowerCase();
  const known = NAMES[lower] ?? lower;
  return Object.hasOwn(LANGUAGES, known) ? known : "";
}

/**
 * @param {string} line without its end
 * @param {string} state "" or what an earlier line left open: the closing mark, with its class before a space
 * @returns {{parts: Array<string | [string, string]>, state: string}} text, or [class, text]
 */
export function highlightLine(language, line, state = "") {
  const rules = LANGUAGES[language];
  if (!rules || line.length > MAX_LINE) return { parts: line ? [line] : [], state: "" };
  if (rules.diff) return { parts: diffLine(line), state: "" };
  const parts = [];
  let plain = "";
  let at = 0;
  const put = (kind, text) => {
    if (plain) parts.push(plain);
    plain = "";
    if (text) parts.push([kind, text]);
    at += text.length;
  };
  const until = (close, kind, from) => {
    const end = line.indexOf(close, from);
    put(kind, end < 0 ? line.slice(at) : line.slice(at, end + close.length));
    return end < 0 ? `${kind} ${close}` : "";
  };
  if (state) state = until(state.slice(state.indexOf(" ") + 1), state.slice(0, state.indexOf(" ")), 0);
  if (rules.directive?.test(line) && at === 0) put("kw", rules.directive.exec(line)[0]);
  while (at < line.length && !state) {
    const char = line[at];
    const sticky = (pattern) => {
      if (!pattern) return null;
      pattern.lastIndex = at;
      return pattern.exec(line)?.[0] ?? null;
    };
    let found;
    if (rules.line && line.startsWith(rules.line, at) && (rules.line !== "#" || at === 0 || /\s/.test(line[at - 1])))
      put("com", line.slice(at));
    else if (rules.block && line.startsWith(rules.block[0], at))
      state = until(rules.block[1], "com", at + rules.block[0].length);
    else if ((found = rules.long?.find((mark) => line.startsWith(mark, at))))
      state = until(found, "str", at + found.length);
    else if ((found = sticky(rules.property))) put("key", found);
    else if ((found = sticky(rules.variable))) put("key", found);
    else if ((found = sticky(rules.flag))) put("num", found);
    else if (rules.markup && (found = sticky(TAG))) put("kw", found);
    else if (rules.markup && (found = sticky(ATTRIBUTE))) put("key", found);
    else if ((found = sticky(rules.prefix))) put("str", found);
    else if (rules.quotes?.includes(char)) put("str", quoted(line, at));
    else if (/\d/.test(char) && (found = sticky(NUMBER))) put("num", found);
    else if ((found = sticky(WORD))) {
      if (rules.keywords.has(rules.fold ? found.toLowerCase() : found)) put("kw", found);
      else if (line[at + found.length] === "(" && !rules.markup) put("fn", found);
      else {
        plain += found;
        at += found.length;
      }
    } else {
      plain += char;
      at += 1;
    }
  }
  if (plain) parts.push(plain);
  return { parts, state };
}

function quoted(line, at) {
  let end = at + 1;
  while (end < line.length && line[end] !== line[at]) end += line[end] === "\\" ? 2 : 1;
  return line.slice(at, end + 1);
}

function diffLine(line) {
  if (!line) return [];
  if (line.startsWith("@@")) return [["fn", line]];
  if (line[0] === "+") return [["str", line]];
  if (line[0] === "-") return [["del", line]];
  return [line];
}
