// Blocks -> nodes -> the document. Text becomes text nodes and nothing else; an answer that grows is patched in place.

import { blocks } from "./blocks.js";
import { highlightLine, languageOf } from "./highlight.js";
import { element, inline } from "./inline.js";

/** Nodes of a whole text; what {@link Markdown} shows once its text is complete. */
export function nodesOf(text) {
  return new Nodes().of(blocks(linesOf(text)), false);
}

const linesOf = (text) => text.replaceAll("\r\n", "\n").split("\n");

/** Makes nodes and gives the same node again for the same text, so that patching can skip it. */
class Nodes {
  constructor() {
    this.known = new Map();
  }

  /** @param {boolean} open the last block is still growing */
  of(found, open) {
    return found.map((block, index) => this.block(block, open && index === found.length - 1));
  }

  block(block, open) {
    switch (block.type) {
      case "heading":
        // The page has an h1 and the panels h2; an answer's headings come below.
        return element(`h${Math.min(block.level + 2, 6)}`, this.inline(block.text, open), {
          class: `md-h${block.level}`,
        });
      case "rule":
        return element("hr");
      case "quote":
        return element("blockquote", this.of(block.blocks, open));
      case "math":
        return element("pre", [block.text], { class: "math-block" });
      case "code":
        return this.code(block);
      case "list":
        return this.list(block, open);
      case "table":
        return this.table(block, open);
      default:
        return element("p", this.inline(block.text, open));
    }
  }

  inline(text, open) {
    if (open) return inline(text, true);
    return this.once(`i${text}`, () => inline(text));
  }

  once(key, make) {
    let value = this.known.get(key);
    if (value === undefined) {
      value = make();
      this.known.set(key, value);
    }
    return value;
  }

  list(block, open) {
    const items = block.items.map((content, index) => {
      const last = open && index === block.items.length - 1;
      const kids = this.of(content, last);
      const task = /^\[([ xX])\] /.exec(content[0]?.type === "paragraph" ? content[0].text : "");
      if (!task) return element("li", kids);
      kids[0] = element("p", [
        task[1] === " " ? "☐ " : "☑ ",
        ...this.inline(content[0].text.slice(4), last && content.length === 1),
      ]);
      return element("li", kids, { class: "task" });
    });
    const attrs = {};
    if (block.loose) attrs.class = "loose";
    if (block.start !== 1) attrs.start = String(block.start);
    return element(block.ordered ? "ol" : "ul", items, attrs);
  }

  table(block, open) {
    const row = (cells, tag, growing) =>
      element(
        "tr",
        cells.map((cell, i) =>
          element(tag, this.inline(cell, growing), block.align[i] ? { class: block.align[i] } : null),
        ),
      );
    const body = block.rows.map((cells, i) => row(cells, "td", open && i === block.rows.length - 1));
    const kids = [element("thead", [row(block.head, "th", open && !body.length)])];
    if (body.length) kids.push(element("tbody", body));
    return element("div", [element("table", kids)], {
      class: "table",
      tabindex: "0",
      role: "region",
      "aria-label": "Table",
    });
  }

  code(block) {
    const language = languageOf(block.lang);
    let state = "";
    const lines = block.lines.map((line, index) => {
      const end = index < block.lines.length - 1 ? "\n" : "";
      const made = this.once(`c${language} ${state}\n${line}${end}`, () => {
        const { parts, state: after } = highlightLine(language, line, state);
        const kids = parts.map((part) =>
          typeof part === "string" ? part : element("span", [part[1]], { class: `code-${part[0]}` }),
        );
        return { node: element("span", end ? [...kids, end] : kids, { class: "line" }), after };
      });
      state = made.after;
      return made.node;
    });
    const head = element("figcaption", [
      element("span", [block.lang || "text"]),
      element("button", ["Copy"], { type: "button", class: "copy-code" }),
    ]);
    const pre = element("pre", [element("code", lines)], {
      tabindex: "0",
      role: "region",
      "aria-label": `Code, ${block.lang || "text"}`,
    });
    return element("figure", [head, pre], { class: "code" });
  }
}

/** Shows one text that grows. Work per update is that of the last top-level block; finished blocks are not touched. */
export class Markdown {
  /** @param {(text: string) => void} [onBlock] called with the text of every block once it is finished */
  constructor(container, onBlock) {
    this.container = container;
    this.onBlock = onBlock;
    this.clear();
  }

  clear() {
    this.container.replaceChildren();
    this.nodes = new Nodes();
    this.base = 0; // where the text begins that is not finished
    this.finished = 0; // children of the container that will not change
    this.tail = []; // nodes behind them
    this.text = "";
    this.complete = false;
  }

  /** @param {boolean} open more will come */
  update(text, open) {
    if (text === this.text && this.complete === !open) return;
    if (this.complete || !text.startsWith(this.text.slice(0, this.base))) this.clear();
    this.text = text;
    this.complete = !open;
    const lines = linesOf(text.slice(this.base));
    const found = blocks(lines, open);
    const nodes = this.nodes.of(found, open);
    patch(this.container, this.tail, nodes, this.finished);
    this.tail = nodes;
    if (!open) return this.announce(nodes.length);
    // The last block stands, and with it those before it, once its first line is complete.
    const last = found.at(-1);
    if (found.length < 2 || last.from >= lines.length - 1) return;
    this.announce(found.length - 1);
    this.base += lines.slice(0, last.from).reduce((sum, line) => sum + line.length + 1, 0);
    this.finished += found.length - 1;
    this.tail = nodes.slice(-1);
    this.nodes = new Nodes();
  }

  announce(count) {
    if (!this.onBlock) return;
    for (let i = 0; i < count; i++) this.onBlock(this.container.children[this.finished + i].textContent);
  }
}

/** Make the children of ``parent`` from ``offset`` on, which are those of ``before``, into those of ``after``. */
export function patch(parent, before, after, offset = 0) {
  for (let i = 0; i < after.length; i++) {
    const [was, is] = [before[i], after[i]];
    if (was === is) continue;
    const child = parent.childNodes[offset + i];
    if (was === undefined) parent.append(build(is));
    else if (typeof was === "string" && typeof is === "string") grow(child, is);
    else if (typeof was === "object" && typeof is === "object" && was.tag === is.tag && same(was.attrs, is.attrs))
      patch(child, was.kids, is.kids);
    else child.replaceWith(build(is));
  }
  for (let i = before.length; i > after.length; i--) parent.lastChild.remove();
}

/** Text that only grew is appended to, which leaves the reader's selection alone. */
function grow(node, text) {
  if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
}

function build(node) {
  if (typeof node === "string") return document.createTextNode(node);
  const made = document.createElement(node.tag);
  for (const [name, value] of Object.entries(node.attrs ?? {})) made.setAttribute(name, value);
  for (const kid of node.kids) made.append(build(kid));
  return made;
}

function same(one, other) {
  const [a, b] = [Object.entries(one ?? {}), other ?? {}];
  return a.length === Object.keys(b).length && a.every(([name, value]) => b[name] === value);
}
