// Puts the parts together: which conversation is open, what the buttons and keys do.

import { ApiError, explain, key, models } from "./api.js";
import { CodeView } from "./codeview.js";
import { Composer } from "./composer.js";
import { announce, byId, copyText, icon, toast } from "./dom.js";
import { Fields } from "./fields.js";
import { askKey } from "./keydialog.js";
import { Layout } from "./layout.js";
import { Node } from "./node.js";
import { Rail } from "./rail.js";
import { bodyOf } from "./request.js";
import { Session } from "./session.js";
import { shortcuts } from "./shortcuts.js";
import * as store from "./store.js";
import { Thread } from "./thread.js";
import { newConversation, titleOf } from "./tree.js";

const MODELS_EVERY = 3000; // ms between attempts while the server is not there

for (const place of document.querySelectorAll("[data-icon]")) place.prepend(icon(place.dataset.icon));

let chat = newConversation();
let cards = [];

const session = new Session({
  changed: (which) => which === chat && refresh(),
  grew: (which, message) => thread.grew(which, message, session.running(which)),
  keep: (which) => {
    if (!store.save(which))
      toast("The browser's storage is full: this conversation is not kept. Export and delete some.");
  },
  ended: (which, message) => {
    rail.show(chat.id);
    if (which !== chat) return;
    if (message.problem?.param) fields.point(message.problem.param);
    const { completion } = message.figures;
    announce(message.problem ? message.problem.title : `Answer complete${completion ? `, ${completion} tokens` : ""}.`);
  },
  askKey: (error) => askKey(key.get() ? error.message : "").then((given) => given && loadModels().then(() => true)),
});

const thread = new Thread(
  {
    copy: async (message) =>
      toast(
        (await copyText(message.content)) ? "Copied." : "The browser did not let this page use the clipboard.",
        null,
        2,
      ),
    edit: (message, text) => begin(() => session.edit(chat, message, text)),
    again: (message) => begin(() => session.again(chat, message)),
    retry: (message) => begin(() => session.retry(chat, message)),
    resume: (message) => begin(() => session.resume(chat, message)),
    show: (message) => session.show(chat, message),
    retryNow: () => session.retryNow(chat),
    giveUp: () => session.stop(chat),
    remove: (message) => {
      const before = structuredClone({ ...chat, messages: { ...chat.messages } });
      session.remove(chat, message);
      composer.focus();
      toast("Deleted.", { label: "Undo", run: () => restore(before) });
    },
  },
  (text) => send(text),
);

const composer = new Composer({
  send,
  stop: () => session.stop(chat),
  editLast,
  changed: () => composer.show(chat, session.running(chat), card()),
});
const fields = new Fields(() => {
  if (Object.keys(chat.messages).length) store.save(chat);
  composer.show(chat, session.running(chat), card());
});
const codeView = new CodeView();
const layout = new Layout();
const rail = new Rail({
  open: (id) => {
    location.hash = `/${id}`;
    layout.closeDrawers();
    composer.focus();
  },
  rename: (id, title) => {
    const target = id === chat.id ? chat : store.load(id);
    if (!target) return;
    Object.assign(target, { title, named: true });
    store.save(target);
    if (target === chat) document.title = `${titleOf(chat)} · DeepSeek V2.1`;
  },
  remove: (id) => {
    const before = id === chat.id ? { ...chat, messages: { ...chat.messages } } : store.load(id);
    session.discard({ id });
    store.remove(id);
    if (id === chat.id) fresh();
    else rail.show(chat.id);
    if (before) toast(`“${titleOf(before)}” was deleted.`, { label: "Undo", run: () => restore(before) });
  },
  isLive: (id) => session.running({ id }) !== null,
});

const card = () => cards.find((found) => found.id === chat.model) ?? cards[0] ?? null;

function refresh() {
  thread.show(chat, session.running(chat), card());
  composer.show(chat, session.running(chat), card());
  rail.show(chat.id);
  document.title = `${titleOf(chat)} · DeepSeek V2.1`;
}

function open(found) {
  chat = found;
  if (cards.length && !cards.some((known) => known.id === chat.model)) chat.model = cards[0].id;
  byId("model").value = chat.model;
  fields.show(chat);
  refresh();
}

/** A new conversation with the settings of the one before. */
function fresh() {
  const { model, system, params } = chat;
  if (location.hash) history.pushState(null, "", location.pathname + location.search);
  open(newConversation({ model, system, params: { ...params } }));
  layout.closeDrawers();
  composer.focus();
}

function restore(before) {
  store.save(before);
  const restored = store.load(before.id);
  if (restored && (before.id === chat.id || !Object.keys(chat.messages).length)) {
    history.replaceState(null, "", `#/${before.id}`);
    open(restored);
  } else rail.show(chat.id);
}

/** Start an answer and bring its place into view. */
function begin(start) {
  if (session.running(chat)) return;
  if (location.hash !== `#/${chat.id}`) history.replaceState(null, "", `#/${chat.id}`); // in place of the empty chat
  start();
  thread.follow();
}

function send(text) {
  if (session.running(chat) || !text.trim()) return false;
  if (!chat.model) {
    toast("The server has not named its models yet.");
    return false;
  }
  begin(() => session.send(chat, text.trim()));
  composer.clear();
  announce("Sent.");
  return true;
}

function editLast() {
  const last = [...thread.views.values()].filter((view) => view.isUser).at(-1);
  if (last && !session.running(chat)) last.edit();
}

function openFromAddress() {
  const id = /^#\/([\w-]{1,40})$/.exec(location.hash)?.[1];
  if (id === chat.id) return;
  const run = id && session.running({ id });
  const found = run ? run.chat : id && store.load(id);
  if (found) open(found);
  else if (id) {
    history.replaceState(null, "", location.pathname + location.search);
    open(newConversation({ model: chat.model }));
  } else open(newConversation({ model: chat.model, system: chat.system, params: { ...chat.params } }));
}

async function loadModels() {
  try {
    cards = await models();
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) {
      byId("model").replaceChildren(new Option("needs a key"));
      if (await askKey(key.get() ? error.message : "")) return loadModels();
      return;
    }
    byId("model").replaceChildren(new Option(explain(error).title.toLowerCase()));
    setTimeout(loadModels, MODELS_EVERY);
    return;
  }
  const select = byId("model");
  select.replaceChildren(...cards.map(({ id, root }) => new Option(root && root !== id ? `${id} (${root})` : id, id)));
  select.disabled = cards.length === 0;
  if (!cards.some(({ id }) => id === chat.model))
    chat.model = cards.find(({ id }) => id === store.choice.get("model"))?.id ?? cards[0]?.id ?? "";
  select.value = chat.model;
  // Which model it is and how long its context is are known once the engine is loaded.
  if (cards.some((found) => found.max_model_len === null && found.status !== "failed"))
    setTimeout(loadModels, MODELS_EVERY);
  if (!Object.keys(chat.messages).length) refresh();
  else composer.show(chat, session.running(chat), card());
}

byId("model").addEventListener("change", (event) => {
  chat.model = event.target.value;
  store.choice.set("model", chat.model);
  refresh();
});
byId("new-chat").addEventListener("click", fresh);
byId("code-open").addEventListener("click", () =>
  codeView.open(bodyOf(chat, { head: nextHead(), draft: composer.text })),
);
window.addEventListener("hashchange", openFromAddress);
window.addEventListener("popstate", openFromAddress);
window.addEventListener("pagehide", () => {
  for (const run of session.live.values()) {
    if (!run.discarded) store.save(run.chat);
    run.discarded = true; // that its request now fails is no news
  }
});
store.watch((id) => {
  if (id === chat.id && !session.running(chat)) {
    const found = store.load(id);
    if (found) open(found);
  } else rail.show(chat.id);
});

/** What would be sent now: with nothing written, the last message that was answered. */
function nextHead() {
  const head = chat.messages[chat.head];
  return !composer.text && head?.role === "assistant" ? head.parent : chat.head;
}

shortcuts({
  fresh,
  stop: () => session.running(chat) && (session.stop(chat), true),
  rail: () => layout.toggle("rail"),
  panel: () => layout.toggle("panel"),
  compose: () => composer.focus(),
  isDrawerOpen: () => layout.closeDrawers(),
});

new Node();
openFromAddress();
open(chat);
loadModels();
composer.focus();
