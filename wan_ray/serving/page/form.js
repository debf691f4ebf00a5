// The form: what a task needs and offers, its defaults, its rules in words, and the fields it sends.

import { curlCommand } from "./curl.js";
import { hasKey } from "./server.js";
import { hasText, locale, text } from "./texts.js";

// Controls that begin with the task's default, and are sent only when they differ from it.
const DEFAULTED = ["num_frames", "fps", "num_inference_steps", "guidance_scale", "flow_shift", "solver",
  "negative_prompt", "context_scale"];
const TASKS = ["t2v", "i2v", "t2i", "flf2v", "vace"];
const EXAMPLE_BOXES = '{"mode": "boxes", "paths": [[[8, 40, 48, 80], [104, 40, 144, 80]]]}';

const form = document.getElementById("form");
const at = (id) => document.getElementById(id);
const controls = () => [...form.elements].filter((one) => one.name && !one.disabled);
const previews = new Map(); // a file control -> object URLs on show

let offers = [];
let limits = {};
let offer = null; // of the chosen task and model

/** Build the form for what the server offers; again after the language changed. */
export function startForm(options) {
  ({ offers, limits } = options);
  for (const task of TASKS.filter((name) => offers.some((one) => one.task === name))) {
    const radio = element("input", { type: "radio", name: "task", value: task, id: `task-${task}` });
    const label = element("label", { htmlFor: radio.id });
    label.dataset.text = task;
    at("tasks").append(radio, label);
  }
  at("num_frames").max = limits.num_frames;
  at("num_inference_steps").max = limits.num_inference_steps;
  at("seed").max = limits.seed;
  at("boxes").value = EXAMPLE_BOXES;
  for (const input of form.querySelectorAll("input[type=file]")) dressFile(input);
  form.addEventListener("change", changed);
  form.addEventListener("input", (event) => { clearFault(event.target); showHints(); });
  at("reset").addEventListener("click", () => { putDefaults({ keepChanges: false }); showHints(); });
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  const first = form.querySelector("[name=task]");
  if (first) first.checked = true;
  chooseTask();
}

/** The texts of the form that are not in data-text, in the language chosen. */
export function retellForm() {
  fillSizes();
  for (const input of form.querySelectorAll("input[type=file]")) showFiles(input);
  for (const one of form.elements) clearFault(one);
  showHints();
}

function changed(event) {
  if (event.target.name === "task") chooseTask();
  else if (event.target.id === "model") chooseModel();
  else if (event.target.type === "file") showFiles(event.target);
  showFitting();
  showHints();
}

function chooseTask() {
  const models = offers.filter((one) => one.task === form.elements.task?.value);
  at("model").replaceChildren(...models.map((one) => new Option(one.model, one.model)));
  chooseModel();
}

function chooseModel() {
  offer = offers.find((one) => one.task === form.elements.task?.value && one.model === at("model").value) ?? null;
  putDefaults({ keepChanges: true });
  showFitting();
  showHints();
}

function putDefaults({ keepChanges }) {
  if (!offer) return;
  for (const name of DEFAULTED) {
    const control = at(name);
    const said = offer.defaults[name];
    const value = name === "fps" && (said === 0 || offer.task === "vace") ? "" : String(said);
    if (!keepChanges || control.dataset.default === undefined || control.value === control.dataset.default) {
      control.value = value;
    }
    control.dataset.default = value;
  }
  at("fps").placeholder = offer.task === "vace" ? text("fps_follows") : "";
  if (!keepChanges) at("seed").value = at("size").value = "";
  fillSizes();
}

function fillSizes() {
  if (!offer) return;
  const select = at("size");
  const { width, height } = offer.defaults;
  const own = width ? `${width}x${height}` : "";
  const sizes = [...new Set([own, ...offer.sizes])].map((size) => new Option(size || text("size_follows"), size));
  const kept = select.value === select.dataset.default ? own : select.value;
  select.replaceChildren(...sizes, new Option(text("size_custom"), "custom"));
  select.value = [...select.options].some((option) => option.value === kept) ? kept : own;
  select.dataset.default = own;
}

/** Show what fits the task and mode, and leave the rest out of what is sent. */
function showFitting() {
  const task = form.elements.task?.value;
  const mode = at("mode").value;
  for (const part of form.querySelectorAll("[data-tasks]")) part.hidden = !part.dataset.tasks.split(" ").includes(task);
  for (const part of form.querySelectorAll("[data-modes]")) part.hidden = !part.dataset.modes.split(" ").includes(mode);
  at("model-field").hidden = at("model").options.length < 2;
  at("custom-size").hidden = at("size").value !== "custom";
  at("reference_images").required = task === "vace" && mode === "references";
  for (const one of form.elements) one.disabled = one.closest("[hidden]") !== null && one.id !== "model";
}

function showHints() {
  const task = form.elements.task?.value;
  at("task-hint").textContent = task ? text(`${task}_hint`) : text("no_offers");
  at("mode-hint").textContent = text(`mode_${at("mode").value}_hint`);
  const count = [...at("prompt").value].length;
  at("prompt-count").textContent = count > limits.prompt_chars * 0.8
    ? text("too_long", { count, max: limits.prompt_chars }) : "";
  const [frames, fps] = [Number(at("num_frames").value), Number(at("fps").value)];
  const seconds = (frames / fps).toLocaleString(locale(), { maximumFractionDigits: 1 });
  at("length").textContent = !frames ? "" : fps ? text("length", { seconds, fps }) : text("length_follows");
  at("fps").placeholder = task === "vace" ? text("fps_follows") : "";
}

// ---- Files

function dressFile(input) {
  const face = element("span", { className: "file-face", ariaHidden: "true" });
  face.dataset.text = input.multiple ? "choose_files" : "choose_file";
  face.textContent = text(face.dataset.text);
  const box = element("div", { className: "file" });
  input.replaceWith(box);
  box.append(input, face);
  box.after(element("ul", { className: "files", id: `${input.id}-files` }));
}

function showFiles(input) {
  for (const url of previews.get(input) ?? []) URL.revokeObjectURL(url);
  const urls = [];
  const items = [...input.files].map((file) => {
    const item = element("li", {});
    if (/^(image|video)\//.test(file.type)) {
      const url = URL.createObjectURL(file);
      urls.push(url);
      const picture = file.type.startsWith("image/") ? element("img", { src: url, alt: "" })
        : element("video", { src: url, muted: true, preload: "metadata" });
      picture.addEventListener("error", () => picture.remove());
      item.append(picture);
    }
    const remove = element("button", { type: "button", className: "quiet", textContent: text("remove") });
    remove.ariaLabel = text("remove_what", { what: file.name });
    remove.addEventListener("click", () => removeFile(input, file));
    item.append(element("span", { textContent: file.name }), remove);
    return item;
  });
  previews.set(input, urls);
  at(`${input.id}-files`).replaceChildren(...items);
  clearFault(input);
}

function removeFile(input, file) {
  const rest = new DataTransfer();
  for (const one of input.files) if (one !== file) rest.items.add(one);
  input.files = rest.files;
  showFiles(input);
  input.focus();
}

// ---- Rules

/** Whether all is well; says at each control what is not, and goes to the first. */
export function checkForm() {
  const faults = new Map();
  for (const one of form.elements) clearFault(one);
  for (const one of controls()) {
    const fault = faultOf(one);
    if (fault) faults.set(one, fault);
  }
  for (const [control, fault] of rulesBetween()) if (!faults.has(control)) faults.set(control, fault);
  for (const [control, fault] of faults) showFault(control, fault);
  const [first] = faults.keys();
  if (first) focusOn(first);
  return faults.size === 0;
}

function faultOf(one) {
  const { validity, min, max } = one;
  if (one.required && one.type === "textarea" && !one.value.trim()) return text("need_value");
  if (validity.valueMissing) return text(one.type === "file" ? "need_file" : "need_value");
  if (validity.badInput) return text("bad_number");
  if (validity.rangeUnderflow) return text("too_small", { min });
  if (validity.rangeOverflow) return text("too_large", { max });
  if (validity.stepMismatch) {
    const [base, step] = [Number(min) || 0, Number(one.step)];
    const low = base + Math.floor((Number(one.value) - base) / step) * step;
    return text("off_step", { low, high: low + step });
  }
  const count = [...one.value].length;
  if (one.type === "textarea" && count > limits.prompt_chars) return text("too_long", { count, max: limits.prompt_chars });
  return null;
}

function* rulesBetween() {
  const mode = form.elements.task.value === "vace" ? at("mode").value : null;
  const sides = ["left", "top", "right", "bottom"].map((side) => at(`box-${side}`));
  if (mode === "inpaint") {
    const given = sides.filter((one) => one.value !== "").length;
    if ((at("mask_video").files.length > 0) === (given > 0)) yield [at("mask_video"), text("need_mask")];
    else if (given % 4) yield [sides.find((one) => one.value === ""), text("need_value")];
  }
  if (mode === "extend" && !at("first").files.length && !at("last").files.length) yield [at("first"), text("need_end")];
  if (mode === "outpaint" && !form.querySelector("[name='vace[directions][]']:checked")) {
    yield [form.querySelector("[name='vace[directions][]']"), text("need_side")];
  }
  if (mode === "boxes") {
    try {
      JSON.parse(at("boxes").value);
    } catch (error) {
      yield [at("boxes"), text("bad_json", { why: error.message })];
    }
  }
  if (at("size").value === "custom") {
    for (const one of [at("width"), at("height")]) {
      const fault = one.value ? faultOf(one) : text("need_value");
      if (fault) yield [one, fault];
    }
  }
  const files = controls().filter((one) => one.type === "file").flatMap((one) => [...one.files].map((file) => [one, file]));
  const total = files.reduce((sum, [, file]) => sum + file.size, 0);
  if (total > limits.body_bytes) {
    yield [files[0][0], text("too_heavy", { size: megabytes(total), max: megabytes(limits.body_bytes) })];
  }
}

const megabytes = (bytes) => `${(bytes / 2 ** 20).toLocaleString(locale(), { maximumFractionDigits: 1 })} MiB`;

/** Say what the server did not accept, at the field it names, or below the form. */
export function showRefusal(error) {
  const general = hasText(`error_${error.status}`) ? `error_${error.status}` : error.status >= 500 ? "error_500" : "error_refused";
  const words = error.status === 0 ? text("unreachable") : `${text(general)} ${error.message}`.trim();
  const field = error.param?.replace(/[.[].*/, "");
  const control = [...form.elements].find((one) => !one.disabled && (one.name.replace(/\[.*/, "") || one.id) === field);
  if (control && error.status === 400) {
    showFault(control, error.message);
    focusOn(control);
    return;
  }
  at("form-error").textContent = words;
  at("form-error").hidden = false;
}

function showFault(control, words) {
  clearFault(control);
  const id = `${control.id || control.name}-fault`;
  const place = control.closest(".checks") ?? control.closest(".file") ?? control;
  place.after(element("p", { id, className: "error", textContent: words }));
  control.ariaInvalid = "true";
  control.setAttribute("aria-describedby", id);
}

function clearFault(control) {
  at("form-error").hidden = true;
  if (control.ariaInvalid !== "true") return;
  at(control.getAttribute("aria-describedby"))?.remove();
  control.ariaInvalid = null;
  control.removeAttribute("aria-describedby");
}

function focusOn(control) {
  control.closest("details")?.setAttribute("open", "");
  control.focus();
}

// ---- What is sent

/** Pairs of name and text or File: what was said, without what is the default anyway. */
export function formFields() {
  const fields = [];
  const severalModels = at("model").options.length > 1;
  const allSides = form.querySelectorAll("[name='vace[directions][]']:not(:checked)").length === 0;
  for (const [name, value] of new FormData(form)) {
    if (value instanceof File ? !value.name : value === "") continue;
    if (name === "model" && !severalModels) continue;
    if (name === "vace[directions][]" && allSides) continue;
    if (name === "vace[mode]" && value === "boxes") continue;
    if (name === "size" && value === "custom") fields.push(["size", `${at("width").value}x${at("height").value}`]);
    else if (form.elements[name]?.dataset?.default !== value) fields.push([name, value]);
  }
  return fields;
}

export function formData() {
  const data = new FormData();
  for (const [name, value] of formFields()) data.append(name, value);
  return data;
}

export function formCurl() {
  return curlCommand(location.origin, formFields(), { withKey: hasKey() });
}

/** Put the settings of a video into the form, as far as the server tells them. */
export function reuse(video) {
  const radio = at(`task-${video.task}`);
  if (radio) radio.checked = true;
  chooseTask();
  at("prompt").value = video.prompt ?? "";
  for (const name of [...DEFAULTED, "seed"]) if (video[name] !== undefined && video[name] !== null) at(name).value = video[name];
  if (video.size?.includes("x")) {
    const known = [...at("size").options].some((option) => option.value === video.size);
    at("size").value = known ? video.size : "custom";
    if (!known) [at("width").value, at("height").value] = video.size.split("x");
  }
  showFitting();
  showHints();
  at("task-hint").textContent = text("reused");
  at("prompt").focus();
}

/** A new element with these properties. */
export function element(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}
