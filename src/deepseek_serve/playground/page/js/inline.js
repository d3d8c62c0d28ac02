// Inline Markdown -> nodes. A node is a string or {tag, attrs, kids}; nothing here touches the document.
// Emphasis and links follow CommonMark where models do; HTML and LaTeX stay text. One pass, linear in the text.

const ESCAPABLE = /[!-/:-@[-`{-~]/;
const ENTITIES = {
  amp: "&",
  lt: "<",
  gt: ">",
  quot: '"',
  apos: "'",
  nbsp: "\u00a0",
  hellip: "…",
  mdash: "—",
  ndash: "–",
};
const ENTITY = /&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|([a-zA-Z]{2,8}));/y;
const TARGET =
  /\(\s*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\[^\n]|\((?:[^\s()\\]|\\[^\n])*\))*))(?:\s+(?:"(?:[^"\\]|\\[^])*"|'(?:[^'\\]|\\[^])*'))?\s*\)/y;
const ANGLE = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/y;
const BARE = /https?:\/\/[^\s<>"`\u3000-\u303f\uff00-\uffef]+/y;
const BREAK = /<br\s*\/?>/iy;
const TRAILING = ".,;:!?'\"*_~";
const HALF_LINK = /^\[([^[\]\n]*)\]\([^\s()]*$/;
const SPACE = /\s/;
const PUNCTUATION = /[\p{P}\p{S}]/u;
// What may stand outside of a delimiter that has punctuation on its inside. CommonMark has no ideographs here, so that
// "**注意：**后面" would stay plain; Chinese and Japanese put no spaces there.
const APART = /[\s\p{P}\p{S}\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}]/u;
const MAX_OPEN = 60; // unclosed emphasis; deeper openers stay text

export const element = (tag, kids = [], attrs = null) => ({ tag, attrs, kids });

/** The address if a link may lead there (http, https, mailto), else null. */
export function safeUrl(raw) {
  const text = raw.trim();
  if (!/^(https?:\/\/|mailto:)/i.test(text)) return null;
  try {
    const url = new URL(text);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/**
 * @param {string} text one block's text, line breaks included
 * @param {boolean} open the text is still growing: unclosed emphasis and code count as closed at the end
 */
export function inline(text, open = false) {
  return new Inline(text, open).parse();
}

class Inline {
  constructor(text, open, inLink = false) {
    this.text = text;
    this.open = open;
    this.inLink = inLink;
    this.at = 0;
    this.frames = [{ kids: [], plain: "" }]; // the root, then one per opener that is not closed yet
    this.links = text.includes("](") ? closers(text) : null;
    this.noTicks = new Set(); // lengths of backtick runs that have no closer further on
    this.absent = new Set(); // marks that do not come again
  }

  parse() {
    const { text } = this;
    while (this.at < text.length) {
      const char = text[this.at];
      if (char === "\\") this.escape();
      else if (char === "`") this.code();
      else if (char === "*" || char === "_" || char === "~") this.delimiters(char);
      else if (char === "[" || (char === "!" && text[this.at + 1] === "[")) this.link();
      else if (char === "<") this.angle();
      else if (char === "&") this.entity();
      else if (char === "$") this.math();
      else if (char === "\n") this.newline();
      else if (char === "h" && !this.inLink && !/\w/.test(text[this.at - 1] ?? "")) this.bare();
      else this.literal(1);
    }
    while (this.frames.length > 1) this.unwind();
    const [root] = this.frames;
    flush(root);
    return root.kids;
  }

  get top() {
    return this.frames[this.frames.length - 1];
  }

  find(mark, from) {
    if (this.absent.has(mark)) return -1;
    const found = this.text.indexOf(mark, from);
    if (found < 0) this.absent.add(mark);
    return found;
  }

  literal(length) {
    this.top.plain += this.text.slice(this.at, this.at + length);
    this.at += length;
  }

  push(node) {
    flush(this.top);
    this.top.kids.push(node);
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    return pattern.exec(this.text);
  }

  escape() {
    const next = this.text[this.at + 1] ?? "";
    if (next === "(" || next === "[") {
      const close = this.find(next === "(" ? "\\)" : "\\]", this.at + 2);
      if (close > 0 || this.open) {
        const end = close > 0 ? close + 2 : this.text.length;
        this.push(element("span", [this.text.slice(this.at, end)], { class: "math" }));
        this.at = end;
        return;
      }
    }
    if (next === "\n") {
      this.push(element("br"));
      this.at += 2;
    } else if (ESCAPABLE.test(next)) {
      this.top.plain += next;
      this.at += 2;
    } else this.literal(1);
  }

  /** ``$x_1$``: shown as it stands. A sum of money is not a formula: the closing sign must touch what it closes. */
  math() {
    const double = this.text[this.at + 1] === "$";
    const size = double ? 2 : 1;
    const first = this.text[this.at + size] ?? " ";
    let close = double || !SPACE.test(first) ? this.find(double ? "$$" : "$", this.at + size) : -1;
    if (close > 0 && !double) {
      const inner = this.text.slice(this.at + 1, close);
      if (SPACE.test(inner.at(-1)) || /\d/.test(this.text[close + 1] ?? "") || inner.includes("\n\n")) close = -1;
    }
    if (close < 0) return this.literal(size);
    this.push(element("span", [this.text.slice(this.at, close + size)], { class: "math" }));
    this.at = close + size;
  }

  newline() {
    const hard = this.top.plain.endsWith("  ");
    this.top.plain = this.top.plain.trimEnd();
    this.at += 1;
    if (hard) this.push(element("br"));
    else this.top.plain += "\n";
  }

  code() {
    const run = runLength(this.text, this.at, "`");
    let close = -1;
    if (!this.noTicks.has(run)) {
      let from = this.at + run;
      while (from < this.text.length) {
        const tick = this.text.indexOf("`", from);
        if (tick < 0) break;
        const length = runLength(this.text, tick, "`");
        if (length === run) {
          close = tick;
          break;
        }
        from = tick + length;
      }
      if (close < 0) this.noTicks.add(run);
    }
    if (close < 0 && !(this.open && run < 3 && this.at + run < this.text.length)) return this.literal(run);
    const end = close < 0 ? this.text.length : close;
    let content = this.text.slice(this.at + run, end).replaceAll("\n", " ");
    if (/^ .*[^ ].* $/.test(content)) content = content.slice(1, -1);
    this.push(element("code", [content]));
    this.at = close < 0 ? end : end + run;
  }

  entity() {
    const found = this.match(ENTITY);
    const decoded = found && decode(found);
    if (!decoded) return this.literal(1);
    this.top.plain += decoded;
    this.at += found[0].length;
  }

  angle() {
    if (this.match(BREAK)) {
      this.push(element("br"));
      this.at = BREAK.lastIndex;
      return;
    }
    const found = this.inLink ? null : this.match(ANGLE);
    const href = found && safeUrl(found[1]);
    if (!href) return this.literal(1);
    this.push(anchor(href, [found[1].replace(/^mailto:/i, "")]));
    this.at += found[0].length;
  }

  bare() {
    const found = this.match(BARE);
    if (!found) return this.literal(1);
    let length = found[0].length;
    let surplus = count(found[0], ")") - count(found[0], "(");
    for (; length > 0; length--) {
      const last = found[0][length - 1];
      if (last === ")" && surplus > 0) surplus--;
      else if (!TRAILING.includes(last)) break;
    }
    const url = found[0].slice(0, length);
    const href = safeUrl(url);
    if (!href) return this.literal(4);
    this.push(anchor(href, [url]));
    this.at += url.length;
  }

  link() {
    const image = this.text[this.at] === "!";
    const start = this.at + (image ? 1 : 0);
    const close = this.links?.get(start);
    if (close === undefined) {
      const growing =
        this.open && !this.inLink && this.text.length - start < 2000 && HALF_LINK.exec(this.text.slice(start));
      if (!growing) return this.literal(1 + image);
      this.push(element("span", inline(growing[1]), { class: "dead-link" }));
      this.at = this.text.length;
      return;
    }
    TARGET.lastIndex = close + 1;
    const target = TARGET.exec(this.text);
    if (!target || (this.inLink && !image)) return this.literal(1 + image);
    const end = TARGET.lastIndex;
    const content = this.text.slice(start + 1, close);
    const kids = this.inLink ? [content] : new Inline(content, false, true).parse();
    const raw = unescape(target[1] ?? target[2] ?? "");
    const href = safeUrl(raw);
    // Images are never loaded: their address would tell somebody that the answer is being read.
    const label = kids.length ? kids : [raw];
    if (this.inLink) this.push(element("span", label));
    else if (href) this.push(anchor(href, image ? ["image: ", ...label] : label));
    else
      this.push(
        element("span", label, {
          class: "dead-link",
          title: "This address is not shown: only http, https and mailto are",
        }),
      );
    this.at = end;
  }

  delimiters(char) {
    let left = runLength(this.text, this.at, char);
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[this.at + left] ?? " ";
    if (char === "~" && left !== 2) return this.literal(left);
    const opensLeft = !SPACE.test(after) && (!PUNCTUATION.test(after) || APART.test(before));
    const closesRight = !SPACE.test(before) && (!PUNCTUATION.test(before) || APART.test(after));
    const inWord = char === "_";
    const opens = opensLeft && (!inWord || !closesRight || PUNCTUATION.test(before));
    const closes = closesRight && (!inWord || !opensLeft || PUNCTUATION.test(after));
    this.at += left;
    while (closes && left > 0) {
      const index = this.opener(char, left, opens);
      if (index < 0) break;
      while (this.frames.length - 1 > index) this.unwind(false);
      const frame = this.frames.pop();
      flush(frame);
      const used = char === "~" || (frame.left >= 2 && left >= 2) ? 2 : 1;
      const node = element(char === "~" ? "del" : used === 2 ? "strong" : "em", frame.kids);
      left -= used;
      frame.left -= used;
      if (frame.left > 0) {
        this.frames.push({ ...frame, kids: [node], plain: "" });
      } else this.push(node);
    }
    if (left === 0) return;
    if (opens && this.frames.length < MAX_OPEN)
      this.frames.push({ char, left, size: left, both: closes, kids: [], plain: "" });
    else this.top.plain += char.repeat(left);
  }

  /** The innermost frame that a run of ``left`` may close; CommonMark's rule of three applies. */
  opener(char, left, alsoOpens) {
    for (let i = this.frames.length - 1; i > 0; i--) {
      const frame = this.frames[i];
      if (frame.char !== char) continue;
      const odd =
        (alsoOpens || frame.both) && (frame.size + left) % 3 === 0 && !(frame.size % 3 === 0 && left % 3 === 0);
      if (char === "~" || !odd) return i;
    }
    return -1;
  }

  /** Dissolve the innermost frame: its opener was text after all, or is closed by the end of a growing text. */
  unwind(atEnd = true) {
    const frame = this.frames.pop();
    flush(frame);
    if (this.open && atEnd && frame.kids.length) {
      const tag = frame.char === "~" ? "del" : frame.left >= 2 ? "strong" : "em";
      this.push(element(tag, frame.kids));
      return;
    }
    if (!(this.open && atEnd)) this.top.plain += frame.char.repeat(frame.left);
    const [first, ...rest] = frame.kids;
    if (typeof first === "string") this.top.plain += first;
    else if (first) this.push(first);
    for (const kid of rest) {
      if (typeof kid === "string") this.top.plain += kid;
      else this.push(kid);
    }
  }
}

function flush(frame) {
  if (frame.plain) frame.kids.push(frame.plain);
  frame.plain = "";
}

/** Where each ``[`` is closed, if ``(`` follows there. */
function closers(text) {
  const found = new Map();
  const stack = [];
  for (let i = 0; i < text.length; i++) {
    const char = text[i];
    if (char === "\\") i++;
    else if (char === "[") stack.push(i);
    else if (char === "]" && stack.length) {
      const start = stack.pop();
      if (text[i + 1] === "(") found.set(start, i);
    }
  }
  return found;
}

function anchor(href, kids) {
  return element("a", kids, { href, title: href, target: "_blank", rel: "noopener noreferrer nofollow" });
}

function decode([, decimal, hex, name]) {
  if (name) return ENTITIES[name] ?? null;
  const point = decimal ? Number(decimal) : parseInt(hex, 16);
  return point > 31 && point <= 0x10ffff && !(point >= 0xd800 && point < 0xe000) ? String.fromCodePoint(point) : null;
}

function unescape(text) {
  return text
    .replace(/\\([!-/:-@[-`{-~])/g, "$1")
    .replace(new RegExp(ENTITY.source, "g"), (all, ...groups) => decode([all, ...groups]) ?? all);
}

function runLength(text, at, char) {
  let end = at;
  while (text[end] === char) end++;
  return end - at;
}

function count(text, char) {
  return text.split(char).length - 1;
}
