// The list of videos: how far each is, its picture, and what can be done with it.

import { element } from "./form.js";
import { cancelVideo, content, deleteVideo, listVideos, queue, remixVideo, retrieveVideo, states } from "./server.js";
import { locale, text } from "./texts.js";

const PAGE = 12;
const POLL_MS = 2000;
const HIDDEN_POLL_MS = 15000;
const MAX_STREAMS = 2; // a browser opens six connections to a server, and the others are needed

const at = (id) => document.getElementById(id);
const cards = new Map(); // id -> card
const isLive = (video) => video.status === "queued" || video.status === "in_progress";

let hooks = {};
let hasOlder = false;
let timer = null;

/** hooks: announce(words), trouble(error or null), queue(counts), reuse(video), confirmDelete(video) -> bool. */
export function startVideos(given) {
  hooks = given;
  at("older").addEventListener("click", showOlder);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) look();
    else for (const card of cards.values()) card.stream?.abort(); // tabs share the six
  });
  look();
}

/** Add a video that was just accepted, and bring it into view. */
export function addVideo(video) {
  const card = put(video, { first: true });
  hooks.announce(text("said_queued", { prompt: short(video) }));
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  card.item.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
  follow();
  schedule();
}

/** Everything again in the language chosen. */
export function retellVideos() {
  for (const card of cards.values()) show(card);
}

// ---- Keeping up with the server

async function look() {
  clearTimeout(timer);
  const known = [...cards.keys()];
  try {
    const page = await listVideos(Math.min(100, Math.max(PAGE, known.length)));
    queue().then(hooks.queue, () => hooks.queue(null));
    for (const video of page.data.toReversed()) if (!cards.get(video.id)?.stream) put(video, { first: true });
    if (known.length === 0) hasOlder = page.has_more;
    dropGone(page, known);
    hooks.trouble(null);
  } catch (error) {
    hooks.trouble(error);
    if (error.status === 401) return;
  }
  showEmpty();
  follow();
  schedule();
}

/** What was deleted elsewhere: not on the page though newer than its last. */
function dropGone(page, known) {
  const listed = new Set(page.data.map((video) => video.id));
  const oldest = page.data.at(-1)?.created_at ?? 0;
  for (const id of known) {
    const card = cards.get(id);
    if (card && !listed.has(id) && (!page.has_more || card.video.created_at > oldest)) drop(card);
  }
}

function schedule() {
  clearTimeout(timer);
  const all = [...cards.values()];
  const waits = document.hidden ? HIDDEN_POLL_MS : POLL_MS;
  timer = setTimeout(look, all.some((card) => isLive(card.video) && !card.stream) ? waits : 5 * waits);
}

/** Listen to the videos that run or run soonest; the others are asked for now and then. */
function follow() {
  if (document.hidden) return;
  const live = [...cards.values()].filter((card) => isLive(card.video));
  live.sort((a, b) => (a.video.status === "queued") - (b.video.status === "queued") || a.video.created_at - b.video.created_at);
  const open = live.filter((card) => card.stream).length;
  for (const card of live.filter((one) => !one.stream && !one.deaf).slice(0, Math.max(0, MAX_STREAMS - open))) listen(card);
}

async function listen(card) {
  card.stream = new AbortController();
  try {
    for await (const video of states(card.video.id, card.stream.signal)) update(card, video);
  } catch (error) {
    card.stream = null;
    if (error.name === "AbortError") return;
    card.deaf = true; // polling goes on
  }
  card.stream = null;
  if (cards.has(card.video.id) && isLive(card.video)) {
    try {
      update(card, await retrieveVideo(card.video.id));
    } catch (error) {
      card.deaf = true;
      if (error.status === 404) drop(card);
    }
  }
  follow();
  schedule();
}

async function showOlder() {
  try {
    const page = await listVideos(PAGE, [...at("videos").children].at(-1)?.dataset.id);
    hasOlder = page.has_more;
    for (const video of page.data) put(video, { first: false });
  } catch (error) {
    hooks.trouble(error);
  }
  showEmpty();
}

function showEmpty() {
  at("empty").hidden = cards.size > 0;
  at("older").hidden = !hasOlder;
}

// ---- Cards

function put(video, { first }) {
  const known = cards.get(video.id);
  if (known) {
    update(known, video);
    return known;
  }
  const card = build(video);
  cards.set(video.id, card);
  at("videos")[first ? "prepend" : "append"](card.item);
  show(card);
  showEmpty();
  return card;
}

function drop(card) {
  card.stream?.abort();
  for (const url of card.urls.values()) URL.revokeObjectURL(url);
  cards.delete(card.video.id);
  card.item.remove();
  showEmpty();
}

function build(video) {
  const item = element("li", { className: "card" });
  item.dataset.id = video.id;
  const stage = element("div", { className: "stage" });
  const heading = element("h3", { className: "prompt", id: `prompt-${video.id}` });
  const parts = Object.fromEntries(["facts", "state", "fault"].map((name) => [name, element("p", { className: name })]));
  const bar = element("progress", { max: 100 });
  const actions = element("div", { className: "actions" });
  const card = { video, item, stage, heading, ...parts, bar, actions, urls: new Map(), buttons: {}, said: 0 };
  for (const [name, act] of Object.entries(ACTIONS)) {
    const button = element("button", { type: "button", className: name });
    button.addEventListener("click", () => attempt(card, act));
    card.buttons[name] = button;
    actions.append(button);
  }
  const about = element("div", { className: "about" });
  about.append(heading, parts.facts, parts.state, bar, parts.fault, actions);
  item.append(stage, about);
  return card;
}

function update(card, video) {
  const before = card.video;
  if (isLive(video) && !isLive(before)) return; // an answer that was on its way when the video ended
  card.video = video;
  if (before.status !== video.status) hooks.announce(text(`said_${video.status}`, { prompt: short(video) }));
  const quarter = Math.floor((video.progress ?? 0) / 25);
  if (video.status === "in_progress" && quarter > card.said) {
    hooks.announce(text("said_percent", { percent: quarter * 25, prompt: short(video) }));
  }
  card.said = Math.max(card.said, quarter);
  if (before.status !== video.status) card.fault.textContent = "";
  show(card);
}

function show(card) {
  const { video, item, bar, buttons } = card;
  const live = isLive(video);
  item.dataset.status = video.status;
  card.heading.textContent = video.prompt ?? video.id;
  card.facts.replaceChildren(...facts(video).map((fact) => element("span", { textContent: fact })));
  card.state.replaceChildren(element("span", { className: "chip", textContent: text(video.status) }), ` ${detail(video)}`);
  bar.hidden = video.status !== "in_progress";
  bar.value = video.progress ?? 0;
  bar.ariaLabel = text("progress");
  if (video.error && video.status !== "cancelled") card.fault.textContent = video.error.message;
  card.fault.hidden = !card.fault.textContent;
  for (const [name, button] of Object.entries(buttons)) {
    button.textContent = text(name);
    button.setAttribute("aria-describedby", card.heading.id);
  }
  buttons.cancel.hidden = !live;
  buttons.download.hidden = video.status !== "completed";
  buttons.again.hidden = video.status !== "failed" && video.status !== "cancelled";
  buttons.delete.hidden = live;
  showStage(card);
}

function facts(video) {
  const created = new Date(Number(video.created_at) * 1000);
  const today = created.toDateString() === new Date().toDateString();
  const when = created.toLocaleString(locale(), { dateStyle: today ? undefined : "medium", timeStyle: "short" });
  return [
    video.task && text(video.task),
    video.size !== "auto" && video.size,
    video.num_frames > 1 && text("frames", { count: video.num_frames }),
    when,
    video.seed !== undefined && video.seed !== null && text("seed_is", { seed: video.seed }),
  ].filter(Boolean);
}

function detail(video) {
  const ahead = video.queue_position;
  if (video.status === "queued" && Number.isInteger(ahead)) return text(ahead < 2 ? `ahead_${ahead}` : "ahead", { count: ahead });
  const steps = video.num_inference_steps;
  if (video.status !== "in_progress" || !steps) return "";
  const step = Math.ceil(video.progress * steps / 100); // the percentage is rounded down
  if (step === 0) return text("starting");
  return step < steps ? text("step", { step, steps }) : text("finishing");
}

const short = (video) => (video.prompt ?? video.id).slice(0, 60);

// ---- Pictures

function showStage(card) {
  const { video, stage } = card;
  const [width, height] = (video.size ?? "").split("x").map(Number);
  if (width && height) stage.style.aspectRatio = `${width} / ${height}`;
  if (video.status === "completed") {
    if (!card.thumb) showThumbnail(card);
    else nameThumbnail(card);
    return;
  }
  const words = video.status === "in_progress" ? `${video.progress ?? 0}%` : text(video.status);
  stage.replaceChildren(element("span", { className: "stage-words", textContent: words, ariaHidden: "true" }));
}

async function showThumbnail(card) {
  const thumb = element("button", { type: "button", className: card.video.task === "t2i" ? "thumb still" : "thumb" });
  thumb.addEventListener("click", () => attempt(card, play));
  card.thumb = thumb;
  nameThumbnail(card);
  card.stage.replaceChildren(thumb);
  try {
    const picture = element("img", { src: await urlOf(card, "thumbnail"), alt: "" });
    thumb.prepend(picture);
    await picture.decode();
    if (card.stage.contains(picture)) card.stage.style.aspectRatio = `${picture.naturalWidth} / ${picture.naturalHeight}`;
  } catch {
    thumb.classList.add("bare"); // it can be played all the same
  }
}

function nameThumbnail({ thumb, video }) {
  thumb.ariaLabel = text(video.task === "t2i" ? "show_what" : "play_what", { prompt: short(video) });
}

/** An object URL of a content, fetched once: an address alone could not carry the key. */
async function urlOf(card, variant) {
  if (!card.urls.has(variant)) {
    const blob = await content(card.video.id, variant);
    if (variant === "video") card.kind = blob.type;
    card.urls.set(variant, URL.createObjectURL(blob));
  }
  return card.urls.get(variant);
}

async function play(card) {
  const url = await urlOf(card, "video");
  if (card.kind.startsWith("image/")) {
    card.stage.replaceChildren(element("img", { src: url, alt: card.video.prompt ?? "", className: "shown" }));
    return;
  }
  const player = element("video", { src: url, controls: true, loop: true, muted: true, playsInline: true, className: "shown" });
  player.ariaLabel = card.video.prompt ?? "";
  card.stage.replaceChildren(player);
  player.focus();
  await player.play();
}

async function download(card) {
  const href = await urlOf(card, "video");
  const ending = card.kind.startsWith("image/") ? "png" : "mp4";
  const link = element("a", { href, download: `${card.video.id}.${ending}` });
  link.click();
}

// ---- Actions

const ACTIONS = {
  cancel: async (card) => update(card, await cancelVideo(card.video.id)),
  download,
  again: async (card) => addVideo(await remixVideo(card.video.id, card.video.prompt)),
  reuse: async (card) => hooks.reuse(card.video),
  delete: async (card) => {
    if (!await hooks.confirmDelete(card.video)) return;
    const next = card.item.nextElementSibling ?? card.item.previousElementSibling;
    await deleteVideo(card.video.id);
    drop(card);
    hooks.announce(text("said_deleted"));
    (next?.querySelector("button:not([hidden])") ?? at("videos-title")).focus();
  },
};

async function attempt(card, act) {
  try {
    card.fault.textContent = "";
    await act(card);
  } catch (error) {
    if (error.status === 404) {
      drop(card);
      hooks.announce(text("error_404"));
    } else {
      card.fault.textContent = error.status === 0 ? text("unreachable") : error.message;
    }
  }
  card.fault.hidden = !card.fault.textContent;
}
