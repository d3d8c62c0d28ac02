// Block Markdown -> blocks: {type, from, ...}, where `from` is the line it begins on. Pure; see render.js for nodes.

const FENCE = /^( {0,3})(`{3,}|~{3,})[ \t]*([^`\n]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:([ \t]+)(.*))?$/;
const UNDERLINE = /^ {0,3}(=+|-+)[ \t]*$/;
const TABLE_LINE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const MATH = /^ {0,3}(\$\$|\\\[)/;
// A line that may yet become a marker: while it is the last of a growing text it is not shown.
const HALF = /^ {0,3}(?:`{1,2}|~{1,2}|#{1,6}|[-*+_]{1,2}|\d{1,3}[.)]|>|\||\$|\\)$/;
const MAX_DEPTH = 16;
const BLANK = /^[ \t]*$/;

/**
 * @param {string[]} lines without their ends
 * @param {boolean} open more may come: the last block is still growing
 */
export function blocks(lines, open = false, depth = 0) {
  const end = open && lines.length && HALF.test(lines.at(-1)) ? lines.length - 1 : lines.length;
  const found = [];
  let at = 0;
  while (at < end) {
    if (BLANK.test(lines[at])) {
      at++;
      continue;
    }
    const block = begin(lines, at, end, open, depth);
    block.from = at;
    at = block.to;
    delete block.to;
    found.push(block);
  }
  return found;
}

function begin(lines, at, end, open, depth) {
  const line = lines[at];
  const shallow = depth < MAX_DEPTH;
  if (FENCE.test(line)) return fence(lines, at, end);
  const heading = HEADING.exec(line);
  if (heading) {
    return { type: "heading", level: heading[1].length, text: withoutClosing(heading[2] ?? ""), to: at + 1 };
  }
  if (RULE.test(line)) return { type: "rule", to: at + 1 };
  if (shallow && QUOTE.test(line)) return quote(lines, at, end, open, depth);
  if (shallow && ITEM.test(line)) return list(lines, at, end, open, depth);
  if (tableAt(lines, at, end, open)) return table(lines, at, end);
  if (MATH.test(line)) {
    const block = math(lines, at, end, open);
    if (block) return block;
  }
  if (/^(?: {4}|\t)/.test(line)) return indented(lines, at, end);
  return paragraph(lines, at, end);
}

/** ``Title ##`` -> ``Title`` */
function withoutClosing(text) {
  const trimmed = text.trim();
  let end = trimmed.length;
  while (trimmed[end - 1] === "#") end--;
  return end === 0 || /\s/.test(trimmed[end - 1]) ? trimmed.slice(0, end).trimEnd() : trimmed;
}

function fence(lines, at, end) {
  const [, indent, marker, info] = FENCE.exec(lines[at]);
  const closing = new RegExp(`^ {0,3}${marker[0] === "`" ? "`" : "~"}{${marker.length},}[ \\t]*$`);
  const strip = new RegExp(`^ {0,${indent.length}}`);
  const content = [];
  let to = at + 1;
  let closed = false;
  while (to < end && !closed) {
    if (closing.test(lines[to])) closed = true;
    else content.push(indent ? lines[to].replace(strip, "") : lines[to]);
    to++;
  }
  return {
    type: "code",
    lang: info
      .trim()
      .split(/[\s{,]/)[0]
      .slice(0, 30),
    lines: content,
    closed,
    to,
  };
}

function indented(lines, at, end) {
  let to = at;
  while (to < end && (/^(?: {4}|\t)/.test(lines[to]) || BLANK.test(lines[to]))) to++;
  while (BLANK.test(lines[to - 1])) to--;
  const content = lines.slice(at, to).map((line) => line.replace(/^(?: {4}|\t)/, ""));
  return { type: "code", lang: "", lines: content, closed: true, to };
}

function math(lines, at, end, open) {
  const close = MATH.exec(lines[at])[1] === "$$" ? "$$" : "\\]";
  let to = at;
  let rest = lines[at].trimStart().slice(2);
  while (!rest.includes(close)) {
    to++;
    if (to >= end || to - at > 100)
      return open && to >= end ? { type: "math", text: lines.slice(at, end).join("\n"), to: end } : null;
    rest = lines[to];
  }
  if (!BLANK.test(rest.slice(rest.indexOf(close) + 2))) return null; // text follows: a paragraph with a formula
  return { type: "math", text: lines.slice(at, to + 1).join("\n"), to: to + 1 };
}

function quote(lines, at, end, open, depth) {
  const inner = [];
  let to = at;
  let lazy = false;
  for (; to < end; to++) {
    const line = lines[to];
    if (QUOTE.test(line)) {
      inner.push(line.replace(QUOTE, ""));
      lazy = !BLANK.test(inner.at(-1)) && !interrupts(inner.at(-1));
    } else if (lazy && !BLANK.test(line) && !interrupts(line)) inner.push(line);
    else break;
  }
  return { type: "quote", blocks: blocks(inner, open && to === end, depth + 1), to };
}

function list(lines, at, end, open, depth) {
  const first = ITEM.exec(lines[at]);
  const ordered = /\d/.test(first[2][0]);
  const kind = first[2].at(-1);
  const items = [];
  let to = at;
  let loose = false;
  let apart = false; // blank lines stood before this item
  while (to < end) {
    const marker = ITEM.exec(lines[to]);
    if (!marker || RULE.test(lines[to]) || /\d/.test(marker[2][0]) !== ordered || marker[2].at(-1) !== kind) break;
    const { inner, next, gap } = item(lines, to, end, marker);
    const content = blocks(inner, open && next >= end, depth + 1);
    loose ||= apart || spread(content, inner);
    apart = gap;
    items.push(content);
    to = next;
  }
  return { type: "list", ordered, start: ordered ? parseInt(first[2], 10) : 1, loose, items, to };
}

/** Lines of one item without their indentation, the line after it, and whether blank lines end it. */
function item(lines, at, end, marker) {
  const space = marker[3] ?? " ";
  const width = marker[1].length + marker[2].length + (space.length > 4 ? 1 : space.length);
  const ordered = /\d/.test(marker[2][0]);
  const inner = [space.length > 4 ? space.slice(1) + (marker[4] ?? "") : (marker[4] ?? "")];
  let inText = !interrupts(inner[0]) && !BLANK.test(inner[0]);
  let next = at + 1;
  let blanks = 0;
  let fenceMark = FENCE.exec(inner[0])?.[2] ?? "";
  for (; next < end; next++) {
    const line = lines[next].replace(/^\t+/, (tabs) => "    ".repeat(tabs.length));
    if (BLANK.test(line)) {
      blanks++;
      inner.push("");
      inText = false;
      continue;
    }
    const indent = line.length - line.trimStart().length;
    const other = ITEM.exec(line);
    // Models indent bullets under "1." by two; CommonMark wants three.
    const child = other && indent >= 2 && /\d/.test(other[2][0]) !== ordered;
    if (indent >= width || child) {
      const text = line.slice(Math.min(indent, width));
      const mark = FENCE.exec(text)?.[2];
      if (mark && (!fenceMark || mark.startsWith(fenceMark))) fenceMark = fenceMark ? "" : mark;
      inner.push(text);
      inText = !fenceMark && !FENCE.test(text) && !HEADING.test(text);
    } else if (inText && !interrupts(line)) inner.push(line.trimStart());
    else break;
    blanks = 0;
  }
  inner.length -= blanks;
  return { inner, next, gap: blanks > 0 };
}

/** Are two blocks of an item apart by a blank line? */
function spread(content, inner) {
  return content.slice(1).some((block) => BLANK.test(inner[block.from - 1] ?? "x"));
}

function tableAt(lines, at, end, open) {
  const head = lines[at];
  if (!head.includes("|")) return false;
  if (at + 1 >= end) return open && /^ {0,3}\|/.test(head);
  if (open && at + 2 >= end && /^ {0,3}\|/.test(head) && /^[ \t|:-]*$/.test(lines[at + 1])) return true;
  return (
    TABLE_LINE.test(lines[at + 1]) && lines[at + 1].includes("-") && cells(head).length === cells(lines[at + 1]).length
  );
}

function table(lines, at, end) {
  const head = cells(lines[at]);
  const align = cells(lines[at + 1] ?? "").map((cell) =>
    cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "",
  );
  const rows = [];
  let to = Math.min(at + 2, end);
  for (; to < end && !BLANK.test(lines[to]) && !interrupts(lines[to]); to++) {
    const row = cells(lines[to]).slice(0, head.length);
    while (row.length < head.length) row.push("");
    rows.push(row);
  }
  return { type: "table", head, align, rows, to };
}

/** The cells of a row; a ``|`` inside of code or after a backslash does not end one. */
function cells(line) {
  const row = line.trim().replace(/^\|/, "");
  const found = [];
  let cell = "";
  let ticks = false;
  for (let i = 0; i < row.length; i++) {
    const char = row[i];
    if (char === "\\" && row[i + 1] === "|") {
      cell += "|";
      i++;
    } else if (char === "`") {
      ticks = !ticks && row.indexOf("`", i + 1) > 0;
      cell += char;
    } else if (char === "|" && !ticks) {
      found.push(cell.trim());
      cell = "";
    } else cell += char;
  }
  if (cell.trim() || !row.endsWith("|")) found.push(cell.trim());
  return found;
}

function paragraph(lines, at, end) {
  const text = [lines[at].trimStart()];
  let to = at + 1;
  for (; to < end && !BLANK.test(lines[to]); to++) {
    const underline = UNDERLINE.exec(lines[to]);
    if (underline)
      return { type: "heading", level: underline[1][0] === "=" ? 1 : 2, text: text.join("\n").trim(), to: to + 1 };
    if (interrupts(lines[to])) break;
    if (/^ {0,3}\|/.test(lines[to]) && to + 1 < end && TABLE_LINE.test(lines[to + 1])) break;
    text.push(lines[to].trimStart());
  }
  return { type: "paragraph", text: text.join("\n").trimEnd(), to };
}

/** Does the line end a paragraph before it without a blank line between? */
function interrupts(line) {
  const marker = ITEM.exec(line);
  return (
    FENCE.test(line) ||
    HEADING.test(line) ||
    RULE.test(line) ||
    QUOTE.test(line) ||
    (marker !== null && Boolean(marker[4]))
  );
}
