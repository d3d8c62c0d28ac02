// The messages of the conversation that is open: which are shown, and where the reader is.

import { byId, copyText, h, toast } from "./dom.js";
import { MessageView } from "./message.js";
import { path, siblings } from "./tree.js";

const NEAR = 80; // px from the end that still count as reading along

const STARTERS = [
  "解释量子计算原理",
  "Write a Python function that merges overlapping intervals, with tests.",
  "Explain the difference between a process and a thread in a table.",
  "Give me three names for a sailing boat, as a JSON array.",
];

export class Thread {
  /**
   * @param {object} actions what message buttons do, see MessageView
   * @param {(text: string) => void} start called with a suggested first message
   */
  constructor(actions, start) {
    this.actions = actions;
    this.start = start;
    this.element = byId("thread");
    this.scroller = byId("scroller");
    this.toEnd = byId("to-end");
    this.views = new Map();
    this.dirty = new Map(); // views to update at the next frame -> run
    this.follows = true;
    this.scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.toEnd.addEventListener("click", () => this.follow());
    this.element.addEventListener("click", (event) => this.copyCode(event));
  }

  /** Show a conversation as it stands. */
  show(chat, run, model) {
    const shown = path(chat);
    const fresh = this.chat !== chat.id;
    this.chat = chat.id;
    const views = new Map();
    for (const message of shown) {
      const view = (!fresh && this.views.get(message.id)) || new MessageView(message, this.actions);
      view.message = message;
      view.update({ run: run?.answer === message ? run : null, siblings: siblings(chat, message), busy: Boolean(run) });
      views.set(message.id, view);
    }
    this.views = views;
    this.dirty.clear();
    const elements = [...views.values()].map((view) => view.element);
    if (!shown.length) elements.push(this.welcome(model));
    this.place(elements);
    if (fresh) this.follow();
    else this.keepUp();
  }

  /** Put the elements in order; those in place already are not touched, so that focus and selection stay. */
  place(elements) {
    const wanted = new Set(elements);
    for (const child of [...this.element.children]) if (!wanted.has(child)) child.remove();
    elements.forEach((element, index) => {
      if (this.element.children[index] !== element)
        this.element.insertBefore(element, this.element.children[index] ?? null);
    });
  }

  /** The running answer has more text: shown at the next frame. */
  grew(chat, message, run) {
    if (chat.id !== this.chat) return;
    const view = this.views.get(message.id);
    if (!view) return;
    this.dirty.set(view, run);
    this.frame ||= requestAnimationFrame(() => this.flush());
  }

  flush() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    for (const [view, run] of this.dirty) view.grow(run);
    this.dirty.clear();
    this.keepUp();
  }

  welcome(model) {
    const title = model ? `${model.root ?? model.id}` : "This server's model";
    const facts = model?.max_model_len ? `${model.max_model_len.toLocaleString("en")} tokens of context. ` : "";
    return h(
      "section",
      { class: "welcome", "aria-labelledby": "welcome-title" },
      h("h2", { id: "welcome-title", text: title }),
      h("p", { text: `${facts}What you write goes to this server and is kept in this browser, nowhere else.` }),
      h(
        "ul",
        {},
        ...STARTERS.map((text) => h("li", {}, h("button", { type: "button", text, onclick: () => this.start(text) }))),
      ),
    );
  }

  async copyCode(event) {
    const button = event.target.closest?.(".copy-code");
    if (!button) return;
    const done = await copyText(button.closest("figure").querySelector("code").textContent);
    button.textContent = done ? "Copied" : "Not copied";
    if (!done) toast("The browser did not let this page use the clipboard.");
    setTimeout(() => (button.textContent = "Copy"), 1500);
  }

  get atEnd() {
    return this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight < NEAR;
  }

  scrolled() {
    this.follows = this.atEnd;
    this.offerEnd(!this.follows);
  }

  follow() {
    this.follows = true;
    this.keepUp();
  }

  keepUp() {
    if (this.follows) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.offerEnd(!this.follows && !this.atEnd);
  }

  /** The button to the end goes when it is not needed; the focus, if it is there, goes on to what comes next. */
  offerEnd(wanted) {
    const focused = document.activeElement === this.toEnd;
    this.toEnd.hidden = !wanted;
    if (wanted || !focused) return;
    const touch = matchMedia("(pointer: coarse)").matches; // a keyboard must not come up
    (touch ? this.scroller : byId("prompt")).focus({ preventScroll: true });
  }
}
