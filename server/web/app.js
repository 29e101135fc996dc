// The page: a conversation with /v1/chat/completions, streamed.
"use strict";

const $ = (id) => document.getElementById(id);
const LARGEST = 32 << 20; // bytes of a file
const messages = []; // as the API takes them
let files = []; // {name, text}, for the next message
let running = null; // AbortController of the answer that is being read
let started = 0;

// ---- keys, theme, state of the server ----------------------------------------------------------------------

function headers() {
  const key = sessionStorage.getItem("key");
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function askForKey() {
  return new Promise((done) => {
    const dialog = $("ask");
    dialog.addEventListener("close", () => {
      sessionStorage.setItem("key", $("key").value.trim());
      $("key").value = "";
      done();
    }, { once: true });
    dialog.showModal();
  });
}

async function fetchWithKey(path, options = {}) {
  let answer = await fetch(path, { ...options, headers: headers() });
  while (answer.status === 401) {
    await askForKey();
    answer = await fetch(path, { ...options, headers: headers() });
  }
  return answer;
}

async function showModel() {
  try {
    const health = await fetch("health");
    if (health.ok) {
      const props = await (await fetchWithKey("props")).json();
      const ctx = props.n_ctx.toLocaleString();
      $("model").textContent = `${props.model} · ${ctx} tokens · ${props.attention} · ${props.rope}`;
      $("model").title = props.explain;
      return;
    }
    const { status, progress } = await health.json();
    const share = progress ? ` ${Math.round(100 * progress)}%` : "";
    $("model").textContent = status === "failed" ? "the model could not be loaded" : `loading …${share}`;
  } catch {
    $("model").textContent = "the server does not answer";
  }
  setTimeout(showModel, 1000);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)").matches;
setTheme(localStorage.getItem("theme") || (prefersDark ? "dark" : "light"));

// ---- the conversation --------------------------------------------------------------------------------------

function show(kind, text = "") {
  $("hint")?.remove();
  const article = document.createElement("article");
  article.className = kind;
  article.append(document.createTextNode(text));
  $("log").append(article);
  $("log").scrollTop = $("log").scrollHeight;
  return article;
}

function note(article, text, kind = "note") {
  const line = document.createElement("span");
  line.className = kind;
  line.textContent = text;
  article.append(line);
}

function append(article, text, reasoning) {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  let place = article.lastChild;
  if (reasoning) {
    let details = article.querySelector("details");
    if (!details) {
      details = document.createElement("details");
      const summary = document.createElement("summary");
      summary.textContent = "Reasoning";
      details.append(summary, document.createTextNode(""));
      article.prepend(details);
    }
    place = details.lastChild;
  }
  place.data += text;
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function duration(seconds) {
  const s = Math.ceil(seconds);
  return s < 60 ? `${s} s` : `${Math.floor(s / 60)} min ${s % 60} s`;
}

function showProgress(p) {
  $("reading").hidden = p.processed >= p.total;
  $("bar").max = p.total;
  $("bar").value = p.processed;
  const read = p.processed - p.cache;
  const rate = read / Math.max(p.time_ms / 1000, 1e-3);
  const left = read > 0 && p.time_ms > 0 ? `, ${duration((p.total - p.processed) / rate)} left` : "";
  const cached = p.cache ? ` (${p.cache.toLocaleString()} known)` : "";
  $("read").textContent =
    `${p.processed.toLocaleString()} of ${p.total.toLocaleString()} tokens read${cached}${left}`;
}

function showStats(t) {
  const parts = [`${(t.prompt_n + t.cache_n).toLocaleString()} tokens read, ${t.cache_n.toLocaleString()} of them known`];
  if (t.prompt_per_second) parts.push(`${Math.round(t.prompt_per_second).toLocaleString()} read/s`);
  if (t.predicted_per_second) parts.push(`${t.predicted_n} written at ${t.predicted_per_second.toFixed(1)}/s`);
  if (t.keys_read_share !== null && t.keys_read_share !== undefined) {
    parts.push(`${(100 * t.keys_read_share).toFixed(1)}% of the keys read`);
  }
  if (t.attention_error !== null && t.attention_error !== undefined) {
    parts.push(`${(100 * t.attention_error).toFixed(1)}% error of attention`);
  }
  $("stats").textContent = parts.join(" · ");
}

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const lines = buffer.split("\n");
    buffer = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

function setRunning(controller) {
  running = controller;
  $("send").hidden = controller !== null;
  $("stop").hidden = controller === null;
  if (controller === null) $("reading").hidden = true;
}

async function answer() {
  const controller = new AbortController();
  setRunning(controller);
  $("stats").textContent = "";
  let said = "";
  let article = null;
  const place = () => (article ??= show("assistant"));
  try {
    const body = JSON.stringify({ messages, stream: true, return_progress: true });
    const found = await fetchWithKey("v1/chat/completions", { method: "POST", body, signal: controller.signal });
    if (!found.ok) throw new Error((await found.json()).error.message);
    for await (const event of eventsOf(found.body)) {
      if (event.error) throw new Error(event.error.message);
      if (event.prompt_progress) showProgress(event.prompt_progress);
      if (event.overflow) {
        const o = event.overflow;
        note(show("assistant"), `${o.dropped_messages} earlier messages did not fit (${o.mode}).`);
      }
      const delta = event.choices?.[0]?.delta;
      if (delta?.reasoning_content) append(place(), delta.reasoning_content, true);
      if (delta?.content) {
        $("reading").hidden = true;
        said += delta.content;
        append(place(), delta.content, false);
      }
      if (event.timings) showStats(event.timings);
    }
  } catch (error) {
    if (error.name === "AbortError") note(place(), "stopped");
    else show("error", error.message);
  }
  if (said) messages.push({ role: "assistant", content: said });
  else messages.pop(); // the next message would come after one without an answer
  setRunning(null);
  $("text").focus();
}

function send() {
  const typed = $("text").value.trim();
  if (running || (!typed && !files.length)) return;
  const content = [...files.map((file) => file.text), typed].filter(Boolean).join("\n\n");
  const article = show("user", typed);
  for (const file of files) note(article, `${file.name}, ${file.text.length.toLocaleString()} characters`, "file");
  messages.push({ role: "user", content });
  files = [];
  showFiles();
  $("text").value = "";
  grow();
  answer();
}

function clear() {
  running?.abort();
  messages.length = 0;
  files = [];
  showFiles();
  $("log").replaceChildren();
  $("stats").textContent = "";
  $("text").focus();
}

// ---- files -------------------------------------------------------------------------------------------------

async function addFiles(list) {
  for (const file of list) {
    if (file.size > LARGEST) {
      show("error", `${file.name} is larger than ${LARGEST >> 20} MiB.`);
      continue;
    }
    const text = await file.text();
    if (text.includes("\0")) show("error", `${file.name} is not a text file.`);
    else files.push({ name: file.name, text });
  }
  showFiles();
  $("text").focus();
}

function showFiles() {
  $("files").replaceChildren(...files.map((file, i) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${file.name} ×`;
    button.title = `Leave ${file.name} out`;
    button.addEventListener("click", () => {
      files.splice(i, 1);
      showFiles();
    });
    item.append(button);
    return item;
  }));
}

let inside = 0; // dragenter and dragleave come for children too
addEventListener("dragenter", (event) => {
  event.preventDefault();
  inside += 1;
  $("drop").hidden = false;
});
addEventListener("dragleave", () => {
  inside -= 1;
  $("drop").hidden = inside <= 0;
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  $("drop").hidden = true;
  addFiles([...event.dataTransfer.files]);
});

// ---- keyboard ----------------------------------------------------------------------------------------------

function grow() {
  const text = $("text");
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight + 2}px`;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("text").addEventListener("input", grow);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
$("file").addEventListener("change", async () => {
  await addFiles([...$("file").files]);
  $("file").value = "";
});
const toggleTheme = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", clear);
$("theme").addEventListener("click", toggleTheme);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("ask").open) running?.abort();
  const actions = { n: clear, t: toggleTheme, o: () => $("file").click() };
  if (event.altKey && actions[event.key]) {
    event.preventDefault();
    actions[event.key]();
  }
});

showModel();
