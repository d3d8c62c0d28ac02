// The list of conversations: open, rename, delete with undo, export, import.

import { byId, h, iconButton, toast } from "./dom.js";
import * as store from "./store.js";

const DAY = 86_400_000;

export class Rail {
  /**
   * @param {object} on
   * @param {(id: string) => void} on.open
   * @param {(id: string, title: string) => void} on.rename
   * @param {(id: string) => void} on.remove
   * @param {(id: string) => boolean} on.isLive is an answer running in it
   */
  constructor(on) {
    this.on = on;
    this.list = byId("chats");
    byId("export").addEventListener("click", () => this.export());
    byId("import").addEventListener("click", () => byId("import-file").click());
    byId("import-file").addEventListener("change", (event) => this.import(event.target));
    this.list.addEventListener("keydown", (event) => this.move(event));
  }

  show(current) {
    this.current = current;
    const focus = this.list.contains(document.activeElement) ? document.activeElement : null;
    const back = focus && [
      focus.closest("li").dataset.id,
      ["rename", "delete"].find((name) => focus.classList.contains(name)),
    ];
    const items = [];
    let group = "";
    for (const entry of store.list()) {
      const day = dayOf(entry.updated);
      if (day !== group) items.push(h("li", { class: "day", text: day }));
      group = day;
      items.push(this.item(entry));
    }
    if (!items.length)
      items.push(
        h("li", { class: "none", text: "Conversations will be listed here. They are kept in this browser only." }),
      );
    this.list.replaceChildren(...items);
    if (back?.[0]) this.list.querySelector(`[data-id="${CSS.escape(back[0])}"] .${back[1] ?? "open"}`)?.focus();
  }

  item({ id, title }) {
    const isCurrent = id === this.current;
    const open = h("button", {
      type: "button",
      class: "open",
      title,
      text: title,
      "aria-current": isCurrent ? "true" : null,
      onclick: () => this.on.open(id),
    });
    if (this.on.isLive(id))
      open.prepend(h("span", { class: "live-dot" }, h("span", { class: "hidden", text: "answering: " })));
    const tools = h(
      "span",
      { class: "tools" },
      iconButton("edit", `Rename ${title}`, () => this.rename(id, title), { class: "icon-button rename" }),
      iconButton("trash", `Delete ${title}`, () => this.on.remove(id), { class: "icon-button delete" }),
    );
    return h("li", { class: isCurrent ? "chat current" : "chat", "data-id": id }, open, tools);
  }

  rename(id, title) {
    const item = this.list.querySelector(`[data-id="${CSS.escape(id)}"]`);
    const input = h("input", { type: "text", "aria-label": "Name of the conversation", maxlength: "200" });
    input.value = title;
    let over = false;
    const leave = (keep) => {
      if (over) return;
      over = true;
      const name = input.value.trim();
      if (keep && name && name !== title) this.on.rename(id, name);
      this.show(this.current);
      this.list.querySelector(`[data-id="${CSS.escape(id)}"] .open`)?.focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      leave(event.key === "Enter");
    });
    input.addEventListener("blur", () => leave(true));
    item.replaceChildren(input);
    input.select();
    input.focus();
  }

  /** Arrow keys walk the list, F2 renames, Delete deletes. */
  move(event) {
    const open = event.target.closest(".open");
    if (!open) return;
    const all = [...this.list.querySelectorAll(".open")];
    const item = open.closest("li");
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) all[all.indexOf(open) + step]?.focus();
    else if (event.key === "F2") item.querySelector(".rename").click();
    else if (event.key === "Delete") item.querySelector(".delete").click();
    else return;
    event.preventDefault();
  }

  export() {
    const all = store.exported();
    if (!all.chats.length) return toast("There is no conversation to export yet.");
    const url = URL.createObjectURL(new Blob([JSON.stringify(all, null, 1)], { type: "application/json" }));
    h("a", { href: url, download: `conversations-${new Date().toISOString().slice(0, 10)}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  async import(input) {
    const [file] = input.files;
    input.value = "";
    if (!file) return;
    try {
      const count = store.imported(await file.text());
      toast(count === 1 ? "One conversation was added." : `${count} conversations were added.`);
    } catch (error) {
      toast(error.message);
    }
    this.show(this.current);
  }
}

function dayOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - DAY) return "Yesterday";
  if (time >= midnight - 7 * DAY) return "Last seven days";
  return new Date(time).toLocaleDateString("en", { month: "long", year: "numeric" });
}
