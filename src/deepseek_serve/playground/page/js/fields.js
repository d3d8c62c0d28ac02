// The settings of a request as form fields, made from the list in request.js.

import { byId, h } from "./dom.js";
import { PARAMETERS } from "./request.js";

export class Fields {
  /** @param {() => void} changed called when a setting is another one */
  constructor(changed) {
    this.changed = changed;
    this.rows = new Map();
    this.system = h("textarea", { id: "system", rows: "3", placeholder: "None", "aria-describedby": "system-help" });
    this.system.addEventListener("input", () => {
      this.chat.system = this.system.value;
      this.changed();
    });
    const more = h("details", { class: "more" }, h("summary", { text: "More sampling" }));
    byId("fields").append(
      h(
        "div",
        { class: "field" },
        h("label", { for: "system", text: "System prompt" }),
        this.system,
        h("p", { class: "hint", id: "system-help", text: "Tells the model how to behave, before the conversation." }),
      ),
    );
    for (const parameter of PARAMETERS) {
      const row = this.row(parameter);
      this.rows.set(parameter.name, row);
      (parameter.more ? more : byId("fields")).append(row.element);
    }
    byId("fields").append(more);
    byId("reset").addEventListener("click", () => this.reset());
  }

  /** Show the settings of this conversation, and write into them from now on. */
  show(chat) {
    this.chat = chat;
    this.system.value = chat.system;
    for (const [name, row] of this.rows) row.show(chat.params[name]);
  }

  reset() {
    this.chat.system = "";
    this.chat.params = {};
    this.show(this.chat);
    this.changed();
  }

  /** Bring a field to the eye, because the server did not like its value. */
  point(name) {
    const row = this.rows.get(name === "response_format" ? "json" : name);
    row?.input.setAttribute("aria-invalid", "true");
  }

  row(parameter) {
    const { name, label, kind, help } = parameter;
    const id = `field-${name}`;
    const set = (value) => {
      if (value === undefined || value === "" || value === false) delete this.chat.params[name];
      else this.chat.params[name] = value;
      this.changed();
    };
    const note = h("p", { class: "hint", id: `${id}-help`, text: help });
    if (kind === "switch") {
      const input = h("input", { type: "checkbox", id, role: "switch", "aria-describedby": note.id });
      input.addEventListener("change", () => set(input.checked));
      const element = h("div", { class: "field switch" }, h("label", { for: id, text: label }), input, note);
      return { element, input, show: (value) => clear(input, () => (input.checked = value === true)) };
    }
    if (kind === "lines") {
      const input = h("textarea", {
        id,
        rows: "1",
        class: "mono",
        spellcheck: "false",
        placeholder: "None",
        "aria-describedby": note.id,
      });
      input.addEventListener("input", () => clear(input, () => set(input.value)));
      return {
        element: h("div", { class: "field" }, h("label", { for: id, text: label }), input, note),
        input,
        show: (value) => clear(input, () => (input.value = value ?? "")),
      };
    }
    return this.numberRow(parameter, id, note, set);
  }

  numberRow({ label, kind, min, max, step, fallback, unit }, id, note, set) {
    const input = h("input", {
      type: "text",
      inputmode: kind === "integer" ? "numeric" : "decimal",
      id,
      class: "number",
      autocomplete: "off",
      placeholder: fallback === undefined ? "Automatic" : String(fallback),
      "aria-describedby": note.id,
    });
    const slider =
      max === undefined
        ? null
        : h("input", { type: "range", min, max, step, "aria-label": `${label}, slider`, tabindex: "-1" });
    const show = (value) => {
      clear(input, () => (input.value = value ?? ""));
      this.slide(slider, value ?? fallback);
    };
    input.addEventListener("input", () => {
      const text = input.value.trim();
      const value = Number(text);
      const valid =
        text === "" ||
        (Number.isFinite(value) &&
          (min === undefined || value >= min) &&
          (max === undefined || value <= max) &&
          (kind !== "integer" || Number.isSafeInteger(value)));
      input.setAttribute("aria-invalid", String(!valid));
      note.textContent = valid ? note.dataset.help : problem({ kind, min, max });
      if (!valid) return;
      this.slide(slider, text === "" ? fallback : value);
      set(text === "" ? undefined : value);
    });
    note.dataset.help = note.textContent;
    slider?.addEventListener("input", () => {
      input.value = slider.value;
      input.dispatchEvent(new Event("input"));
    });
    const element = h(
      "div",
      { class: "field number-field" },
      h("label", { for: id }, label, unit && h("span", { class: "unit", text: ` ${unit}` })),
      input,
      slider,
      note,
    );
    return {
      element,
      input,
      show: (value) => {
        note.textContent = note.dataset.help;
        show(value);
      },
    };
  }

  slide(slider, value) {
    if (!slider) return;
    slider.value = value;
    const share = (slider.value - slider.min) / (slider.max - slider.min);
    slider.style.setProperty("--share", `${share * 100}%`);
  }
}

function clear(input, act) {
  input.removeAttribute("aria-invalid");
  act();
}

function problem({ kind, min, max }) {
  const what = kind === "integer" ? "A whole number" : "A number";
  if (max !== undefined) return `${what} from ${min} to ${max}. The last valid one is used.`;
  return `${what}${min === undefined ? "" : `, ${min} or more`}. The last valid one is used.`;
}
