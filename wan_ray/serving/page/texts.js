// Every text of the page in English and Chinese. The server's own words about errors are English and shown as they are.

const TEXTS = {
  skip: ["Skip to the videos", "跳到视频列表"],
  links: ["Links and settings", "链接与设置"],
  docs: ["API", "文档"],
  key: ["API key", "密钥"],
  language: ["中文", "English"],
  make: ["New video", "新建视频"],
  task: ["Task", "任务"],
  t2v: ["Text to video", "文生视频"],
  t2i: ["Text to image", "文生图"],
  i2v: ["Image to video", "图生视频"],
  flf2v: ["First and last frame", "首尾帧"],
  vace: ["Edit and control", "编辑与控制"],
  t2v_hint: ["A video from a description.", "根据文字描述生成视频。"],
  t2i_hint: ["A still image from a description.", "根据文字描述生成一张图片。"],
  i2v_hint: ["A video that begins with your image.", "生成以你的图片开头的视频。"],
  flf2v_hint: ["A video from one image to another.", "生成从一张图片过渡到另一张图片的视频。"],
  vace_hint: ["A video that follows, repairs or enlarges yours, or shows what your images show.",
    "跟随、修补或扩展你的视频，或让参考图片中的内容出现在视频里。"],
  prompt: ["Prompt", "提示词"],
  prompt_hint: ["Ctrl+Enter submits.", "按 Ctrl+Enter 提交。"],
  image: ["First image", "首帧图片"],
  last_image: ["Last image", "末帧图片"],
  mode: ["What to do", "操作"],
  mode_references: ["Show what images show", "参考图片生成"],
  mode_control: ["Follow a control video", "跟随控制视频"],
  mode_inpaint: ["Replace a part", "局部重绘"],
  mode_outpaint: ["Enlarge the picture", "扩展画面"],
  mode_extend: ["Extend in time", "时间延展"],
  mode_boxes: ["Move along boxes", "按方框运动"],
  mode_references_hint: ["Give one or more images of people, things or places.", "提供一张或多张人物、物体或场景的图片。"],
  mode_control_hint: ["Depth, pose, edges or gray: the video moves as the control does. With a mask, only its white part changes.",
    "深度、姿态、线稿或灰度：视频按控制视频运动。若有遮罩，只改变白色部分。"],
  mode_inpaint_hint: ["The white part of a mask, or a box, is made anew; the rest stays.", "重新生成遮罩白色部分或方框内的内容，其余保持不变。"],
  mode_outpaint_hint: ["Your video, with more around it.", "在你的视频四周补全更多画面。"],
  mode_extend_hint: ["A video that goes on from yours, leads up to it, or joins two.", "接续你的视频、生成其前段，或连接两段视频。"],
  mode_boxes_hint: ["Things move where you let boxes move.", "让物体沿你给出的方框移动。"],
  control_video: ["Video", "视频"],
  mask_video: ["Mask (white changes)", "遮罩（白色处改变）"],
  first: ["Beginning", "开头"],
  last: ["End", "结尾"],
  box: ["Box, in pixels of the result", "方框（结果画面的像素）"],
  box_hint: ["Instead of a mask. Leave empty with one.", "用来代替遮罩；有遮罩时请留空。"],
  left: ["Left", "左"],
  top: ["Top", "上"],
  right: ["Right", "右"],
  bottom: ["Bottom", "下"],
  up: ["Up", "上"],
  down: ["Down", "下"],
  process: ["Make a control of it", "转换为控制视频"],
  process_none: ["It is one already", "已是控制视频"],
  process_gray: ["Gray of colours", "彩色转灰度"],
  process_scribble: ["Scribble of light lines", "线稿"],
  process_light: ["Depth, near is light", "深度（近处亮）"],
  process_dark: ["Depth, near is dark", "深度（近处暗）"],
  shape: ["Shape", "形状"],
  shape_mask: ["The mask itself", "遮罩本身"],
  shape_hull: ["Its hull", "凸包"],
  shape_box: ["The box around it", "外接方框"],
  expand: ["Expand by a share of its size", "按其大小的比例扩张"],
  ratio: ["Share of the size, each side", "每侧扩展比例"],
  directions: ["Sides", "方向"],
  inner: ["Keep the size, renew the border", "保持尺寸，重绘边缘"],
  num_first: ["Frames kept of the beginning", "保留开头帧数"],
  num_last: ["Frames kept of the end", "保留结尾帧数"],
  boxes: ["Boxes (JSON)", "方框（JSON）"],
  boxes_hint: ["Each path is a box's places over the clip: left, top, right, bottom in pixels.",
    "每条路径是一个方框在片段中的位置：左、上、右、下（像素）。"],
  reference_images: ["Reference images", "参考图片"],
  model: ["Model", "模型"],
  size: ["Size", "尺寸"],
  size_follows: ["As the image", "与图片一致"],
  size_custom: ["Other", "自定义"],
  width: ["Width", "宽"],
  height: ["Height", "高"],
  num_frames: ["Frames", "帧数"],
  length: ["{seconds} s at {fps} fps", "{seconds} 秒，每秒 {fps} 帧"],
  length_follows: ["at the rate of your video", "帧率与你的视频一致"],
  more: ["More options", "更多选项"],
  negative_prompt: ["Negative prompt", "负面提示词"],
  seed: ["Seed", "随机种子"],
  seed_drawn: ["drawn", "随机"],
  num_inference_steps: ["Steps", "步数"],
  guidance_scale: ["Guidance", "引导强度"],
  flow_shift: ["Flow shift", "流偏移"],
  fps: ["Frame rate", "帧率"],
  fps_follows: ["as the video", "与视频一致"],
  solver: ["Solver", "求解器"],
  context_scale: ["Control strength", "控制强度"],
  reset: ["Back to the defaults", "恢复默认值"],
  submit: ["Generate", "生成"],
  submitting: ["Sending…", "提交中…"],
  curl: ["Copy as curl", "复制 curl 命令"],
  choose_file: ["Choose a file, or drop it here", "选择文件，或拖放到此处"],
  choose_files: ["Choose files, or drop them here", "选择文件（可多选），或拖放到此处"],
  remove: ["Remove", "移除"],
  remove_what: ["Remove {what}", "移除 {what}"],
  need_value: ["Please fill this in.", "请填写此项。"],
  need_file: ["Please choose a file.", "请选择文件。"],
  need_mask: ["Give a mask or a box, not both.", "请提供遮罩或方框（二选一）。"],
  need_end: ["Give a beginning, an end or both.", "请提供开头、结尾或两者。"],
  need_side: ["Choose at least one side.", "请至少选择一个方向。"],
  bad_number: ["Please give a number.", "请输入数字。"],
  bad_json: ["This is no JSON: {why}", "不是有效的 JSON：{why}"],
  too_small: ["At least {min}.", "不能小于 {min}。"],
  too_large: ["At most {max}.", "不能大于 {max}。"],
  off_step: ["{low} or {high}.", "请用 {low} 或 {high}。"],
  too_long: ["{count} of {max} characters.", "{count} / {max} 字。"],
  too_heavy: ["These files have {size}; the server takes {max}.", "文件共 {size}，服务器最多接受 {max}。"],
  videos: ["Your videos", "我的视频"],
  empty: ["What you generate appears here, and stays here when you close the page.", "生成的内容会显示在这里，关闭页面后也不会丢失。"],
  older: ["Show older ones", "显示更早的"],
  queued: ["Waiting", "排队中"],
  in_progress: ["In progress", "生成中"],
  completed: ["Done", "已完成"],
  failed: ["Failed", "失败"],
  cancelled: ["Cancelled", "已取消"],
  ahead_0: ["Next in the queue", "即将开始"],
  ahead_1: ["1 ahead of it", "前面还有 1 个"],
  ahead: ["{count} ahead of it", "前面还有 {count} 个"],
  starting: ["Reading the prompt", "正在解析提示词"],
  step: ["Step {step} of {steps}", "第 {step} / {steps} 步"],
  finishing: ["Writing the video", "正在输出视频"],
  progress: ["Progress", "进度"],
  frames: ["{count} frames", "{count} 帧"],
  seed_is: ["seed {seed}", "种子 {seed}"],
  play_what: ["Play: {prompt}", "播放：{prompt}"],
  show_what: ["Show: {prompt}", "查看：{prompt}"],
  download: ["Download", "下载"],
  cancel: ["Cancel", "取消"],
  delete: ["Delete", "删除"],
  again: ["Try again", "重试"],
  reuse: ["Use again", "再次使用"],
  reused: ["The form has these settings now. Files must be chosen again.", "已将设置填入表单。文件需要重新选择。"],
  said_queued: ["Accepted: {prompt}", "已提交：{prompt}"],
  said_in_progress: ["Started: {prompt}", "开始生成：{prompt}"],
  said_percent: ["{percent} percent: {prompt}", "已完成 {percent}%：{prompt}"],
  said_completed: ["Done: {prompt}", "已完成：{prompt}"],
  said_failed: ["Failed: {prompt}", "失败：{prompt}"],
  said_cancelled: ["Cancelled: {prompt}", "已取消：{prompt}"],
  said_deleted: ["Deleted.", "已删除。"],
  queue_idle: ["Nothing is waiting", "队列空闲"],
  queue_busy: ["{running} running, {queued} waiting", "{running} 个生成中，{queued} 个排队"],
  key_title: ["API key", "API 密钥"],
  key_about: ["This server asks for a key. It is kept in this tab only, until you close it.", "此服务器需要密钥。密钥只保存在当前标签页中，关闭后即清除。"],
  key_wrong: ["The server does not know this key.", "服务器不接受此密钥。"],
  key_forget: ["Forget it", "清除"],
  save: ["Use it", "使用"],
  cancel_dialog: ["Cancel", "取消"],
  close: ["Close", "关闭"],
  copy: ["Copy", "复制"],
  copied: ["Copied.", "已复制。"],
  curl_title: ["The same with curl", "用 curl 提交"],
  curl_about: ["To be run in the folder of your files.", "请在文件所在的目录运行。"],
  curl_key: ["The key is read from the environment variable WAN_RAY_API_KEY.", "密钥取自环境变量 WAN_RAY_API_KEY。"],
  delete_title: ["Delete it for good?", "确定永久删除？"],
  delete_about: ["Its files are removed from the server.", "服务器上的文件将被移除。"],
  keep: ["Keep it", "保留"],
  unreachable: ["The server cannot be reached. Trying again…", "无法连接服务器，正在重试…"],
  no_offers: ["This server offers no task.", "此服务器未提供任何任务。"],
  error_401: ["An API key is needed.", "需要 API 密钥。"],
  error_404: ["It is not there any more.", "该内容已不存在。"],
  error_413: ["Too large for this server.", "超出服务器允许的大小。"],
  error_429: ["Too much at once; please wait a little.", "请求过多，请稍候再试。"],
  error_500: ["Something went wrong on the server.", "服务器出错了。"],
  error_refused: ["The server did not accept this.", "服务器未接受此请求。"],
};

const LANGUAGES = ["en", "zh"];
const HTML_LANGUAGES = ["en", "zh-Hans"];
let chosen = 0;

/** The text of a key in the language chosen, with {names} filled in. */
export function text(key, values = {}) {
  return TEXTS[key][chosen].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Whether there is a text of that key. */
export function hasText(key) {
  return Object.hasOwn(TEXTS, key);
}

/** What numbers and dates are formatted for. */
export function locale() {
  return ["en-GB", "zh-CN"][chosen];
}

/** Take the language that was chosen before, or the browser's. */
export function startLanguage() {
  const wanted = localStorage.getItem("language") ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
  chosen = Math.max(0, LANGUAGES.indexOf(wanted));
  showTexts(document);
}

/** The other language. */
export function switchLanguage() {
  chosen = 1 - chosen;
  localStorage.setItem("language", LANGUAGES[chosen]);
  showTexts(document);
}

/** Put texts where elements ask for them by data-text, data-label and data-placeholder. */
export function showTexts(root) {
  document.documentElement.lang = HTML_LANGUAGES[chosen];
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  for (const element of root.querySelectorAll("[data-label]")) element.ariaLabel = text(element.dataset.label);
  for (const element of root.querySelectorAll("[data-placeholder]")) element.placeholder = text(element.dataset.placeholder);
}
