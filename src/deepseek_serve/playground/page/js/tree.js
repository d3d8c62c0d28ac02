// A conversation is a tree of messages: editing or asking again adds a branch beside the old one, nothing is lost.
// {id, title, named, created, updated, model, system, params, messages: {id: message}, head}
// message: {id, parent, role, content, created, ...}; `head` is the newest message of the branch that is shown.

export const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(36).padStart(2, "0")).join("");

export function newConversation(defaults = {}) {
  const now = Date.now();
  return {
    id: newId(),
    title: "",
    named: false,
    created: now,
    updated: now,
    model: "",
    system: "",
    params: {},
    messages: Object.create(null),
    head: null,
    ...defaults,
  };
}

/** The messages from the first to ``head``. */
export function path(chat, head = chat.head) {
  const found = [];
  const seen = new Set();
  for (let id = head; id && chat.messages[id] && !seen.has(id); id = chat.messages[id].parent) {
    seen.add(id);
    found.push(chat.messages[id]);
  }
  return found.reverse();
}

/** Messages that answer or follow the same one, oldest first, itself among them. */
export function siblings(chat, message) {
  return Object.values(chat.messages)
    .filter((other) => other.parent === message.parent)
    .sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
}

export function append(chat, message, parent = chat.head) {
  const made = { id: newId(), parent, created: Date.now(), content: "", ...message };
  chat.messages[made.id] = made;
  chat.head = made.id;
  return made;
}

/** Show the branch of this message, down to its newest end. */
export function select(chat, id) {
  let head = id;
  for (;;) {
    const children = Object.values(chat.messages).filter((message) => message.parent === head);
    if (!children.length) break;
    head = children.reduce((a, b) => (b.created >= a.created ? b : a)).id;
  }
  chat.head = head;
}

/** Take out a message and all that follows it. */
export function prune(chat, id) {
  const message = chat.messages[id];
  const others = siblings(chat, message).filter((other) => other.id !== id);
  const doomed = [id];
  for (let i = 0; i < doomed.length; i++) {
    for (const other of Object.values(chat.messages)) if (other.parent === doomed[i]) doomed.push(other.id);
  }
  for (const gone of doomed) delete chat.messages[gone];
  if (others.length) select(chat, others.at(-1).id);
  else chat.head = message.parent;
}

export function titleOf(chat) {
  if (chat.title) return chat.title;
  const first = Object.values(chat.messages).find((message) => message.role === "user");
  const text = first ? first.content.trim().split("\n")[0] : "";
  return text.length > 60 ? `${text.slice(0, 57).trimEnd()} …` : text || "New chat";
}

// -- reading what was stored or imported; it may come from anywhere --------------------------------------------------

const text = (value, fallback = "") => (typeof value === "string" ? value : fallback);
const number = (value, fallback = null) => (Number.isFinite(value) ? value : fallback);
const SAFE_ID = /^[\w-]{1,40}$/;

/** A conversation with every field of the right type, or null if it is none. */
export function readConversation(raw) {
  if (
    !raw ||
    typeof raw !== "object" ||
    !SAFE_ID.test(raw.id ?? "") ||
    typeof raw.messages !== "object" ||
    !raw.messages
  )
    return null;
  const messages = Object.create(null); // an id may be "constructor"
  for (const found of Object.values(raw.messages)) {
    const message = readMessage(found);
    if (message) messages[message.id] = message;
  }
  const params = {};
  for (const [name, value] of Object.entries(raw.params ?? {})) {
    if (/^\w{1,40}$/.test(name) && ["string", "number", "boolean"].includes(typeof value)) params[name] = value;
  }
  const made = {
    id: raw.id,
    title: text(raw.title).slice(0, 200),
    named: raw.named === true,
    created: number(raw.created, Date.now()),
    updated: number(raw.updated, Date.now()),
    model: text(raw.model),
    system: text(raw.system),
    params,
    messages,
    head: null,
  };
  for (const message of Object.values(messages))
    if (!messages[message.parent] || isCircular(messages, message)) message.parent = null;
  if (SAFE_ID.test(raw.head ?? "") && messages[raw.head]) made.head = raw.head;
  else if (Object.keys(messages).length)
    select(made, Object.values(messages).find((message) => !message.parent)?.id ?? null);
  return made;
}

function isCircular(messages, message) {
  const seen = new Set([message]);
  for (let above = messages[message.parent]; above; above = messages[above.parent]) {
    if (seen.has(above)) return true;
    seen.add(above);
  }
  return false;
}

function readMessage(raw) {
  if (!raw || typeof raw !== "object" || !SAFE_ID.test(raw.id ?? "") || !["user", "assistant"].includes(raw.role))
    return null;
  const made = {
    id: raw.id,
    parent: SAFE_ID.test(raw.parent ?? "") ? raw.parent : null,
    role: raw.role,
    created: number(raw.created, 0),
    content: text(raw.content),
  };
  if (raw.role === "user") return made;
  made.reasoning = text(raw.reasoning);
  made.model = text(raw.model);
  made.finish = text(raw.finish) || null;
  made.calls = (Array.isArray(raw.calls) ? raw.calls : []).map((call) => ({
    id: text(call?.id),
    name: text(call?.name),
    arguments: text(call?.arguments),
  }));
  if (raw.problem && typeof raw.problem === "object")
    made.problem = { title: text(raw.problem.title), text: text(raw.problem.text), retry: raw.problem.retry === true };
  const figures = {};
  for (const name of ["prompt", "cached", "completion", "reasoning", "firstToken", "total", "perSecond"]) {
    if (number(raw.figures?.[name]) !== null) figures[name] = raw.figures[name];
  }
  made.figures = figures;
  return made;
}
