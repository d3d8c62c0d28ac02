// The dialog that shows the next request as code.

import { byId, copyText, h } from "./dom.js";
import { Markdown } from "./markdown.js";
import { SNIPPETS } from "./request.js";

export class CodeView {
  constructor() {
    this.dialog = byId("code-dialog");
    this.view = new Markdown(h("div", { class: "md" }));
    byId("code-view").append(this.view.container);
    this.tabs = SNIPPETS.map((snippet, index) =>
      h("button", {
        type: "button",
        role: "tab",
        id: `tab-${snippet.id}`,
        "aria-controls": "code-view",
        text: snippet.label,
        onclick: () => this.select(index),
      }),
    );
    byId("code-tabs").append(...this.tabs);
    byId("code-tabs").addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      this.select((this.at + step + this.tabs.length) % this.tabs.length);
      this.tabs[this.at].focus();
    });
    byId("code-view").addEventListener("click", async (event) => {
      const button = event.target.closest(".copy-code");
      if (!button) return;
      button.textContent = (await copyText(this.code)) ? "Copied" : "Not copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }

  open(body) {
    this.body = body;
    this.select(this.at ?? 0);
    this.dialog.showModal();
  }

  select(index) {
    this.at = index;
    const snippet = SNIPPETS[index];
    this.tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === index));
      tab.tabIndex = i === index ? 0 : -1;
    });
    byId("code-view").setAttribute("aria-labelledby", `tab-${snippet.id}`);
    this.code = snippet.make(this.body);
    const longest = Math.max(2, ...(this.code.match(/`+/g) ?? []).map((run) => run.length));
    const fence = "`".repeat(longest + 1);
    this.view.clear();
    this.view.update(`${fence}${snippet.language}\n${this.code}\n${fence}`, false);
  }
}
