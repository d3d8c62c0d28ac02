// Side columns that are drawers on narrow windows, themes, and dialogs' close buttons.

import { byId } from "./dom.js";
import { choice } from "./store.js";

const NARROW = { rail: "(max-width: 48rem)", panel: "(max-width: 70rem)" };
const THEMES = ["system", "light", "dark"];

export class Layout {
  constructor() {
    this.app = byId("app");
    for (const side of ["rail", "panel"]) {
      byId(`${side}-toggle`).addEventListener("click", () => this.toggle(side));
      matchMedia(NARROW[side]).addEventListener("change", () => this.settle(side));
      this.settle(side);
    }
    byId("status").addEventListener("click", () => this.toggle("panel"));
    byId("scrim").addEventListener("click", () => this.closeDrawers());
    byId("theme").addEventListener("click", () => this.nextTheme());
    this.showTheme(choice.get("theme", "system"));
    for (const button of document.querySelectorAll("[data-close]"))
      button.addEventListener("click", () => button.closest("dialog").close());
    for (const dialog of document.querySelectorAll("dialog")) {
      dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    }
  }

  isDrawer(side) {
    return matchMedia(NARROW[side]).matches;
  }

  isOpen(side) {
    return !this.app.classList.contains(`no-${side}`);
  }

  /** As wide windows were left; drawers begin closed. */
  settle(side) {
    this.set(side, !this.isDrawer(side) && choice.get(side) !== "closed");
  }

  toggle(side) {
    const open = !this.isOpen(side);
    this.set(side, open);
    if (!this.isDrawer(side)) choice.set(side, open ? "" : "closed");
    if (open && this.isDrawer(side)) byId(side).querySelector("button, input, textarea")?.focus();
  }

  set(side, open) {
    const other = side === "rail" ? "panel" : "rail";
    if (open && this.isDrawer(side) && this.isDrawer(other) && this.isOpen(other)) this.set(other, false);
    this.app.classList.toggle(`no-${side}`, !open);
    byId(`${side}-toggle`).setAttribute("aria-expanded", String(open));
    const drawer = ["rail", "panel"].some((name) => this.isDrawer(name) && this.isOpen(name));
    byId("scrim").hidden = !drawer;
    byId("main").inert = drawer;
  }

  /** True if one was open. */
  closeDrawers() {
    const open = ["rail", "panel"].filter((side) => this.isDrawer(side) && this.isOpen(side));
    for (const side of open) {
      this.set(side, false);
      byId(`${side}-toggle`).focus();
    }
    return open.length > 0;
  }

  nextTheme() {
    const next = THEMES[(THEMES.indexOf(choice.get("theme", "system")) + 1) % THEMES.length];
    choice.set("theme", next === "system" ? "" : next);
    this.showTheme(next);
  }

  showTheme(theme) {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const label = `Theme: ${theme === "system" ? "as the system" : theme}`;
    byId("theme").setAttribute("aria-label", label);
    byId("theme").title = label;
  }
}
