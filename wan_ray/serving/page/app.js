// The page: starts the form and the list, and owns the dialogs and the bar at the top.

import { checkForm, formCurl, formData, retellForm, reuse, showRefusal, startForm } from "./form.js";
import { createVideo, hasKey, offered, setKey, whenKeyIsNeeded } from "./server.js";
import { showTexts, startLanguage, switchLanguage, text } from "./texts.js";
import { addVideo, retellVideos, startVideos } from "./videos.js";

const at = (id) => document.getElementById(id);

/** Open a dialog; comes back with the value of the button that closed it, "" for Escape. */
function ask(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}

async function askForKey(wrong) {
  at("key-wrong").hidden = !wrong;
  at("key-forget").hidden = !hasKey();
  at("key-value").value = "";
  const said = await ask(at("key-dialog"));
  const key = at("key-value").value.trim();
  at("key-value").value = "";
  if (said === "forget") setKey(null);
  return said === "save" && key ? key : null;
}

async function confirmDelete(video) {
  at("delete-what").textContent = video.prompt ?? video.id;
  return await ask(at("delete-dialog")) === "delete";
}

function announce(words) {
  at("announce").textContent = words;
}

function trouble(error) {
  at("trouble").hidden = error === null;
  if (error) at("trouble").textContent = error.status === 0 ? text("unreachable") : error.message || text("error_500");
}

let counts = null;

/** What the whole server is at, all keys' videos together. */
function showQueue(found = counts) {
  counts = found;
  at("queue").textContent = counts ? text(counts.running + counts.queued ? "queue_busy" : "queue_idle", counts) : "";
}

async function submit(event) {
  event.preventDefault();
  const button = at("submit");
  if (button.ariaBusy === "true" || !checkForm()) return;
  button.ariaBusy = "true";
  button.textContent = text("submitting");
  try {
    addVideo(await createVideo(formData()));
  } catch (error) {
    showRefusal(error);
  }
  button.ariaBusy = null;
  button.textContent = text("submit");
}

function showCurl() {
  if (!checkForm()) return;
  const line = formCurl();
  at("curl-line").value = line;
  at("curl-line").rows = Math.min(16, line.split("\n").length + 1);
  at("curl-key").hidden = !hasKey();
  at("curl-said").textContent = "";
  ask(at("curl-dialog"));
  at("curl-line").select();
}

async function copyCurl() {
  const line = at("curl-line");
  line.focus();
  line.select();
  try {
    await navigator.clipboard.writeText(line.value);
  } catch {
    document.execCommand("copy"); // where the page came by plain HTTP there is no clipboard object
  }
  at("curl-said").textContent = text("copied");
}

async function start() {
  startLanguage();
  at("language").addEventListener("click", () => {
    switchLanguage();
    retellForm();
    retellVideos();
    showQueue();
    nameLanguage();
  });
  nameLanguage();
  for (const dialog of document.querySelectorAll("dialog")) {
    for (const button of dialog.querySelectorAll(".close")) button.addEventListener("click", () => dialog.close(""));
  }
  at("key").addEventListener("click", async () => {
    const had = hasKey();
    const key = await askForKey(false);
    if (key) setKey(key);
    if (hasKey() !== had || key) location.reload();
  });
  at("form").addEventListener("submit", submit);
  at("curl").addEventListener("click", showCurl);
  at("curl-copy").addEventListener("click", copyCurl);
  whenKeyIsNeeded(askForKey);
  try {
    startForm(await offered());
    showTexts(document);
  } catch (error) {
    trouble(error);
    return;
  }
  startVideos({
    announce,
    trouble,
    queue: showQueue,
    confirmDelete,
    reuse,
  });
}

/** The switch names the other language, in that language. */
function nameLanguage() {
  const button = at("language");
  button.textContent = text("language");
  button.lang = document.documentElement.lang === "en" ? "zh-Hans" : "en";
}

start();
