// One message as it is shown, from its author's name to its figures and buttons.

import { announce, h, icon, iconButton } from "./dom.js";
import { Markdown } from "./markdown.js";

/**
 * @typedef {object} Actions what the buttons do; each is called with the message
 */
export class MessageView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.isUser = message.role === "user";
    this.who = h("span", { class: "who" });
    this.branches = h("span", { class: "branches" });
    this.body = h("div", { class: "body" });
    this.problem = h("div", { class: "problem-slot" });
    this.figures = h("p", { class: "figures" });
    this.tools = h("div", { class: "tools" });
    this.element = h(
      "article",
      { class: `message ${message.role}`, "data-id": message.id },
      h("header", {}, this.who, this.branches, h("span", { class: "grow" }), this.tools),
      this.body,
      this.problem,
      this.figures,
    );
    if (!this.isUser) this.buildAnswer();
  }

  buildAnswer() {
    this.thought = new Markdown(h("div", { class: "md" }));
    this.summary = h("summary", { text: "Thinking" });
    this.reasoning = h("details", { class: "reasoning", hidden: true }, this.summary, this.thought.container);
    this.reasoning.addEventListener("click", () => (this.reasoningTouched = true));
    this.calls = h("div", { class: "calls" });
    this.pending = h("p", { class: "pending" }, h("span", { class: "pulse", "aria-hidden": "true" }), h("span"));
    this.text = new Markdown(h("div", { class: "md answer" }), (block) => this.speaking && announce(block));
    this.body.append(this.reasoning, this.text.container, this.calls, this.pending);
  }

  /**
   * @param {object} state
   * @param {object | null} state.run the running answer, if it is this one
   * @param {object[]} state.siblings branches beside this message
   * @param {boolean} state.busy an answer is running in this conversation
   */
  update(state) {
    const label = this.isUser ? "You" : this.message.model || "Assistant";
    this.who.textContent = label;
    this.element.setAttribute("aria-label", this.isUser ? "You" : `Answer of ${label}`);
    if (this.isUser) {
      if (!this.editing) this.showQuestion();
    } else this.grow(state.run);
    this.showBranches(state);
    this.showTools(state);
  }

  showQuestion() {
    if (this.body.textContent !== this.message.content)
      this.body.replaceChildren(h("p", { class: "plain", text: this.message.content }));
  }

  /** The part of an update that happens for every piece of text. */
  grow(run) {
    const { message } = this;
    const growing = Boolean(run);
    this.speaking = growing || this.speaking;
    this.element.setAttribute("aria-busy", String(growing));
    this.element.classList.toggle("growing", growing);
    if (message.reasoning) {
      const thinking = growing && !message.content;
      this.reasoning.hidden = false;
      if (!this.reasoningTouched) this.reasoning.open = thinking;
      this.summary.textContent = thinking ? "Thinking …" : "Reasoning";
      this.thought.update(message.reasoning, thinking);
    }
    this.text.update(message.content, growing);
    this.showCalls();
    this.showPending(run);
    this.showProblem(run);
    this.showFigures(run);
    this.speaking = growing;
  }

  showPending(run) {
    const waits = run && !run.first && run.phase !== "waiting";
    this.pending.hidden = !waits;
    if (waits)
      this.pending.lastChild.textContent =
        run.phase === "queued" ? "In the queue of the server" : "Waiting for the first token";
  }

  showCalls() {
    const calls = this.message.calls ?? [];
    const key = JSON.stringify(calls);
    if (key === (this.callsKey ?? "[]")) return;
    this.callsKey = key;
    this.calls.replaceChildren(
      ...calls.map((call) =>
        h(
          "figure",
          { class: "call" },
          h(
            "figcaption",
            {},
            h("span", { class: "call-kind", text: "tool call" }),
            h("code", { text: call.name }),
            h("span", { class: "call-id", text: call.id }),
          ),
          h(
            "pre",
            { tabindex: "0", role: "region", "aria-label": `Arguments of ${call.name}` },
            h("code", { text: pretty(call.arguments) }),
          ),
        ),
      ),
    );
  }

  showProblem(run) {
    const { problem, finish, content } = this.message;
    const waiting = run?.phase === "waiting";
    const seconds = waiting ? Math.max(0, Math.ceil((run.until - Date.now()) / 1000)) : 0;
    const key = JSON.stringify([problem, finish, Boolean(run), waiting, Boolean(content)]);
    if (key !== this.problemKey) {
      this.problemKey = key;
      this.problem.replaceChildren(...(problem ? [this.problemBox(problem, run, waiting)] : this.notice(run)));
    }
    const timer = this.problem.querySelector(".countdown");
    if (timer) timer.textContent = `Next try in ${seconds} s`;
  }

  problemBox(problem, run, waiting) {
    const act = (label, name, primary) =>
      h("button", {
        type: "button",
        class: primary ? "button primary" : "button",
        text: label,
        onclick: () => this.actions[name](this.message),
      });
    const buttons = [];
    if (waiting)
      buttons.push(h("span", { class: "countdown" }), act("Try now", "retryNow", true), act("Do not retry", "giveUp"));
    else if (!run) {
      if (this.message.content) buttons.push(act("Continue", "resume", true), act("Ask again", "again"));
      else if (problem.retry) buttons.push(act("Try again", "retry", true));
    }
    return h(
      "div",
      { class: "problem", role: "alert" },
      h("strong", { text: problem.title }),
      h("p", { text: problem.text }),
      buttons.length > 0 && h("div", { class: "problem-actions" }, ...buttons),
    );
  }

  /** Why an answer ended before its natural end, and how to go on. */
  notice(run) {
    const { finish, content } = this.message;
    const ends = { length: "Cut off: the longest answer or the context is reached.", stopped: "Stopped." };
    const text = finish ? ends[finish] : "Not finished: the page was closed.";
    if (!text || run) return [];
    const [label, name] = content ? ["Continue", "resume"] : ["Ask again", "retry"];
    const go = h("button", {
      type: "button",
      class: "quiet",
      text: label,
      onclick: () => this.actions[name](this.message),
    });
    return [h("p", { class: "notice" }, text, go)];
  }

  showFigures(run) {
    if (this.isUser) return;
    const { firstToken, perSecond, prompt, cached, completion, reasoning } = this.message.figures ?? {};
    const parts = [];
    if (firstToken !== undefined) parts.push(["first token", duration(firstToken)]);
    const speed = run ? run.speed : perSecond;
    if (speed) parts.push(["speed", `${speed.toFixed(1)} tok/s`]);
    if (prompt !== undefined && !run) parts.push(["prompt", `${prompt} tok${cached ? `, ${cached} cached` : ""}`]);
    if (completion !== undefined && !run)
      parts.push(["answer", `${completion} tok${reasoning ? `, ${reasoning} thinking` : ""}`]);
    this.figures.replaceChildren(
      ...parts.map(([name, value]) => h("span", {}, h("span", { class: "figure-name", text: `${name} ` }), value)),
    );
  }

  showBranches({ siblings, busy }) {
    this.branches.replaceChildren();
    if (siblings.length < 2) return;
    const at = siblings.indexOf(this.message);
    const step = (name, label, to) =>
      iconButton(name, label, () => this.actions.show(siblings[to]), {
        "aria-disabled": busy || !siblings[to] ? "true" : null,
        "data-step": name,
      });
    this.branches.append(
      step("left", "Earlier version", at - 1),
      h("span", { text: `${at + 1}/${siblings.length}` }),
      step("right", "Later version", at + 1),
    );
  }

  showTools({ busy }) {
    const key = `${busy} ${this.editing}`;
    if (key === this.toolsKey) return;
    this.toolsKey = key;
    const act = (name) => () => this.actions[name](this.message);
    const tools = [iconButton("copy", "Copy", act("copy"))];
    if (!busy) {
      if (this.isUser) tools.push(iconButton("edit", "Edit and send again", () => this.edit()));
      else tools.push(iconButton("retry", "Another answer", act("again")));
      tools.push(iconButton("trash", "Delete from here", act("remove")));
    }
    this.tools.replaceChildren(...(this.editing ? [] : tools));
  }

  edit() {
    if (this.editing) return;
    const area = h("textarea", { "aria-label": "Edit the message", rows: "1" });
    area.value = this.message.content;
    const leave = () => {
      this.editing = false;
      this.body.replaceChildren();
      this.showQuestion();
      this.showTools({ busy: false });
      this.tools.querySelector("button:nth-child(2)")?.focus();
    };
    const send = () => {
      const text = area.value.trim();
      if (!text) return;
      leave();
      this.actions.edit(this.message, text);
    };
    area.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter" && !event.shiftKey) send();
      else if (event.key === "Escape") leave();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.editing = true;
    this.showTools({ busy: false });
    this.body.replaceChildren(
      h(
        "div",
        { class: "edit" },
        area,
        h(
          "div",
          { class: "edit-row" },
          h("button", { type: "button", class: "button", text: "Cancel", onclick: leave }),
          h("button", { type: "button", class: "button primary", onclick: send }, icon("send"), "Send"),
        ),
      ),
    );
    area.focus();
  }
}

function duration(seconds) {
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
}

/** Arguments in readable JSON; as they are while they are not complete. */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
