// The box a message is written in, with its send and stop button and the attach points.

import { byId, h, icon, toast } from "./dom.js";
import { PARAMETERS } from "./request.js";
import { path } from "./tree.js";

// Every model that is served takes text only; these are where other input will come in.
const INPUTS = [
  { id: "attach-image", label: "Attach an image", reason: "This model takes no images: its input is text." },
  { id: "attach-audio", label: "Attach audio", reason: "This model takes no audio: its input is text." },
];

export class Composer {
  /**
   * @param {object} on
   * @param {(text: string) => boolean} on.send
   * @param {() => void} on.stop
   * @param {() => void} on.editLast
   * @param {() => void} on.changed
   */
  constructor(on) {
    this.on = on;
    this.area = byId("prompt");
    this.button = byId("send");
    this.area.addEventListener("input", () => {
      this.fit();
      on.changed();
    });
    this.area.addEventListener("keydown", (event) => this.keydown(event));
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) on.stop();
      else on.send(this.area.value);
    });
    for (const { id, label, reason } of INPUTS) {
      const button = byId(id);
      button.title = reason;
      button.setAttribute("aria-label", `${label}. ${reason}`);
      button.setAttribute("aria-disabled", "true"); // not `disabled`: the reason can be reached by keyboard
      button.addEventListener("click", () => toast(reason));
    }
  }

  get text() {
    return this.area.value.trim();
  }

  focus() {
    // Not on touch screens, where it would open the keyboard over the page.
    if (!matchMedia("(pointer: coarse)").matches) this.area.focus();
  }

  clear() {
    this.area.value = "";
    this.fit();
    this.on.changed();
  }

  fit() {
    this.area.style.height = "auto";
    this.area.style.height = `${this.area.scrollHeight}px`;
  }

  keydown(event) {
    if (event.isComposing || event.keyCode === 229) return; // an input method is at work
    const touch = matchMedia("(pointer: coarse)").matches;
    if (event.key === "Enter" && !event.shiftKey && !event.altKey && (!touch || event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      if (!this.running) this.on.send(this.area.value);
    } else if (event.key === "ArrowUp" && !this.area.value) {
      event.preventDefault();
      this.on.editLast();
    }
  }

  /**
   * @param {object | null} run the running answer
   * @param {object | null} card the model, as /v1/models describes it
   */
  show(chat, run, card) {
    this.running = Boolean(run);
    if (this.shown !== this.running) {
      this.shown = this.running;
      this.button.classList.toggle("stop", this.running);
      this.button.replaceChildren(
        icon(this.running ? "stop" : "send"),
        h("span", { class: "send-label", text: this.running ? "Stop" : "Send" }),
      );
      this.button.setAttribute("aria-label", this.running ? "Stop the answer (Esc)" : "Send");
      this.button.title = this.running ? "Stop (Esc)" : "Send (Enter)";
    }
    this.button.setAttribute("aria-disabled", String(!this.running && !this.text));
    this.showTags(chat);
    this.showContext(chat, card);
  }

  showTags(chat) {
    const set = PARAMETERS.filter(({ name }) => chat.params[name] !== undefined && chat.params[name] !== "");
    const tags = [];
    if (chat.system.trim()) tags.push("system");
    if (chat.params.json) tags.push("JSON");
    const others = set.filter(({ name }) => name !== "json").length;
    if (others) tags.push(others === 1 ? "1 setting" : `${others} settings`);
    byId("composer-tags").replaceChildren(...tags.map((text) => h("span", { class: "tag", text })));
  }

  /** How much of the context the conversation takes, as far as the server has counted. */
  showContext(chat, card) {
    const counted = path(chat).findLast((message) => message.figures?.prompt !== undefined);
    const place = byId("context");
    place.hidden = !counted || !card?.max_model_len;
    if (place.hidden) return;
    const used = counted.figures.prompt + (counted.figures.completion ?? 0);
    place.textContent = `${used.toLocaleString("en")} / ${card.max_model_len.toLocaleString("en")}`;
    place.title = `Tokens of this conversation, of the model's context. ${Math.round((100 * used) / card.max_model_len)} % is used.`;
    place.classList.toggle("tight", used > 0.85 * card.max_model_len);
  }
}
