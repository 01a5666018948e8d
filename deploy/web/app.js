"use strict";
// One WebSocket: text messages carry the state, binary ones the picture as JPEG. In browser mode the page sends pictures too.

const $ = (id) => document.getElementById(id);
const SPAN = 60; // seconds of the timeline
const ROW = 50; // pixels between two bars
let hello = null, state = null, events = [], clock = { at: 0, source: 0 };
let own = null; // our camera's stream, in browser mode

// --- theme: the system's choice until the button is pressed
const saved = localStorage.getItem("theme");
if (saved) document.documentElement.dataset.theme = saved;
$("theme").onclick = () => {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  localStorage.setItem("theme", document.documentElement.dataset.theme = dark ? "light" : "dark");
};

// --- connection
let socket = null, pause = 500;
function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => { pause = 500; };
  socket.onmessage = (message) => {
    if (message.data instanceof ArrayBuffer) return picture(message.data);
    const data = JSON.parse(message.data);
    if (data.type === "hello") greet(data);
    else if (data.type === "state") update(data);
    else if (data.type === "events") events = data.events;
    else if (data.type === "got") inFlight = false;
  };
  socket.onclose = () => {
    inFlight = false;
    if (!state || state.status !== "ended") status("offline", "not connected", "The program does not answer. Trying again…");
    setTimeout(connect, pause);
    pause = Math.min(pause * 2, 5000);
  };
}

// --- what may be shown instead
let refused = null; // attempts to switch that failed; null: not told yet
function offer(what, names, at) {
  const select = $(what);
  $(`${what}-box`).hidden = names.length < 2;
  select.replaceChildren(...names.map((name, i) => new Option(name, i, i === at, i === at)));
  select.disabled = false;
}
for (const what of ["source", "artifact"]) {
  $(what).onchange = () => {
    $("trouble").hidden = true; // the reason of an earlier attempt
    socket.send(JSON.stringify({ [what]: Number($(what).value) }));
  };
}
function complain(text, count) {
  if (refused !== null && count > refused) {
    offer("source", hello.sources, hello.source_at);
    offer("artifact", hello.artifacts, hello.artifact_at);
    $("trouble").textContent = `Not switched: ${text}`;
    $("trouble").hidden = false;
  }
  if (!text) $("trouble").hidden = true;
  refused = count;
}

function greet(data) {
  hello = data;
  state = null;
  inFlight = false;
  events = [];
  shown = "";
  hues.clear();
  offer("source", data.sources, data.source_at);
  offer("artifact", data.artifacts, data.artifact_at);
  if (own && !data.browser) {
    own.getTracks().forEach((track) => track.stop());
    own = null;
    $("own").hidden = true;
    canvas.hidden = false;
  }
  document.title = `${data.model} – dtkd-edge live`;
  $("facts").replaceChildren(...[data.model, data.precision, data.backend, data.device].map((text) => {
    const span = document.createElement("span");
    span.textContent = text;
    return span;
  }));
  heads.clear();
  $("heads").replaceChildren();
}

// --- picture
const canvas = $("picture"), context = canvas.getContext("2d");
let drawing = false;
async function picture(buffer) {
  if (drawing) return; // a slow phone skips pictures
  drawing = true;
  try {
    const image = await createImageBitmap(new Blob([buffer], { type: "image/jpeg" }));
    if (canvas.width !== image.width || canvas.height !== image.height) {
      [canvas.width, canvas.height] = [image.width, image.height];
      document.querySelector(".stage").style.aspectRatio = `${image.width} / ${image.height}`;
    }
    context.drawImage(image, 0, 0);
    image.close();
  } finally { drawing = false; }
}

// --- state
function status(name, text, notice = "") {
  $("status").dataset.state = name;
  $("status-text").textContent = text;
  $("notice").hidden = !notice;
  $("notice-text").textContent = notice;
}

const WORDS = {
  starting: ["starting", "Waiting for the first picture…"], live: ["live", ""],
  reconnecting: ["reconnecting", "The source is away. Trying to get it back…"], ended: ["ended", ""], failed: ["failed", "The source failed."],
};

function update(data) {
  state = data;
  clock = { at: performance.now(), source: data.now };
  const [text, notice] = WORDS[data.status];
  const mine = hello && hello.browser && !own && data.status === "starting";
  status(data.status, text, mine ? "This page can be the camera." : data.error || notice);
  $("camera").hidden = !mine;
  const sure = data.certain.length > 0;
  const label = $("label");
  const words = sure ? data.certain.map((held) => held.label).join(" · ") : data.seq ? "nothing certain" : data.status === "live" ? `watching… ${Math.round(data.filled * 100)} %` : " ";
  if (label.textContent !== words) label.textContent = words;
  label.classList.toggle("none", !sure);
  $("score").textContent = data.certain.map((held) => percent(held.score)).join(" · ");
  const age = own && data.stamp ? performance.now() - data.stamp : data.age_ms;
  $("age").textContent = data.seq ? `${age.toFixed(0)} ms · ${data.fps.toFixed(0)} fps` : "–";
  number("s-age", data.seq ? age.toFixed(0) : null, "ms");
  number("s-p90", data.seq ? data.age_p90_ms.toFixed(0) : null, "ms");
  number("s-inference", data.seq ? fixed(data.inference_ms) : null, "ms");
  number("s-rate", data.seq ? fixed(data.rate) : null, "/s");
  number("s-fps", fixed(data.fps), "fps");
  number("s-dropped", data.dropped.toLocaleString(), "");
  complain(data.trouble, data.refused);
  $("hook").hidden = !data.webhook;
  if (data.webhook) {
    const lost = data.webhook.failed + data.webhook.dropped;
    number("s-hook", data.webhook.sent.toLocaleString(), `posted${lost ? ` · ${lost.toLocaleString()} lost` : ""}`);
  }
  for (const [head, top] of Object.entries(data.top)) bars(head, top, data.held[head]);
  list();
}

const percent = (p) => `${(p * 100).toFixed(p > 0.0995 ? 0 : 1)} %`;
const fixed = (x) => x.toFixed(x < 9.95 ? 1 : 0);
function number(id, value, unit) {
  $(id).innerHTML = value === null ? "–" : `${value}<small>${unit}</small>`; // both are numbers and our own words
}

// A label keeps its colour: the golden angle keeps neighbours in the list apart.
const hues = new Map();
function hue(label) {
  if (!hues.has(label)) {
    const index = hello ? hello.labels.indexOf(label) : -1;
    hues.set(label, Math.round(((index < 0 ? hues.size : index) * 137.508 + 218) % 360));
  }
  return hues.get(label);
}

// --- bars: one element per label, which moves to its rank
const heads = new Map();
function bars(head, top, current) {
  if (!heads.has(head)) {
    if (hello && Object.keys(state.top).length > 1) $("heads").append(Object.assign(document.createElement("h3"), { textContent: head }));
    const box = Object.assign(document.createElement("div"), { className: "rows" });
    box.style.height = `${top.length * ROW - 8}px`;
    $("heads").append(box);
    heads.set(head, { box, rows: new Map() });
  }
  const { box, rows } = heads.get(head);
  const seen = new Set();
  top.forEach(({ label, score }, rank) => {
    seen.add(label);
    let row = rows.get(label);
    if (!row) {
      row = Object.assign(document.createElement("div"), { className: "row" });
      row.innerHTML = '<div class="name"><span></span><span></span></div><div class="track"><div class="fill"></div></div>';
      row.querySelector("span").textContent = label;
      row.style.setProperty("--hue", hue(label));
      row.style.transform = `translateY(${(rank + 0.4) * ROW}px)`;
      row.style.opacity = 0;
      box.append(row);
      rows.set(label, row);
      row.getBoundingClientRect(); // so that it fades in
    }
    row.style.transform = `translateY(${rank * ROW}px)`;
    row.style.opacity = 1;
    row.classList.toggle("on", label === current);
    row.querySelector(".name").lastElementChild.textContent = percent(score);
    row.querySelector(".fill").style.transform = `translateX(${(score - 1) * 100}%)`;
  });
  for (const [label, row] of rows) {
    if (seen.has(label)) continue;
    row.style.opacity = 0;
    rows.delete(label);
    setTimeout(() => row.remove(), 350);
  }
}

// --- events
let shown = "";
function list() {
  const all = [...events, ...state.current].sort((a, b) => a.start - b.start);
  const key = events.length + JSON.stringify(state.current.map((event) => [event.head, event.start])) + (events.length ? events[events.length - 1].end : "");
  $("no-events").hidden = all.length > 0;
  if (key === shown) return;
  shown = key;
  $("count").textContent = all.length ? `${all.length} event${all.length > 1 ? "s" : ""}` : "";
  $("events").replaceChildren(...all.slice(-40).reverse().map((event) => {
    const item = document.createElement("li");
    item.style.setProperty("--hue", hue(event.label));
    item.innerHTML = '<i></i><span class="what"></span><span class="how"></span><span class="when"></span>';
    item.querySelector(".what").textContent = event.label;
    if (hello.heads.length > 1) item.querySelector(".what").append(Object.assign(document.createElement("small"), { textContent: event.head }));
    item.querySelector(".how").textContent = event.end === null ? "now" : `${(event.end - event.start).toFixed(1)} s`;
    // A live source: the time of day. A file that is read fast: the place in it.
    item.querySelector(".when").textContent = event.time ? new Date(event.time).toLocaleTimeString([], { hourCycle: "h23" }) : time(event.start);
    item.title = `${event.time ? new Date(event.time).toLocaleString() + ", " : ""}${time(event.start)} after the start, at most ${percent(event.score)}`;
    return item;
  }));
}
const time = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

// --- timeline: the last minute, moved on every screen refresh
const segments = new Map();
function timeline() {
  if (state) {
    const running = state.status === "live";
    const now = clock.source + (running ? (performance.now() - clock.at) / 1000 : 0);
    const all = [...events, ...state.current], lanes = hello.heads.length;
    const seen = new Set(), wide = $("lanes").clientWidth;
    for (const event of all) {
      const end = event.end === null ? now : event.end;
      if (end < now - SPAN) continue;
      const key = `${event.head} ${event.label}@${event.start}`;
      seen.add(key);
      let segment = segments.get(key);
      if (!segment) {
        segment = Object.assign(document.createElement("div"), { className: "seg", textContent: event.label, title: event.label });
        const lane = Math.max(hello.heads.indexOf(event.head), 0), edge = lanes > 1 ? 4 : 8; // each head has a lane of its own
        segment.style.top = `calc(${100 * lane / lanes}% + ${edge}px)`;
        segment.style.bottom = `calc(${100 * (lanes - 1 - lane) / lanes}% + ${edge}px)`;
        segment.style.setProperty("--hue", hue(event.label));
        $("lanes").append(segment);
        segments.set(key, segment);
      }
      const left = Math.max(0, 1 - (now - event.start) / SPAN);
      segment.style.left = `${left * 100}%`;
      segment.style.width = `calc(${Math.max(0, 1 - (now - end) / SPAN - left) * 100}% - 2px)`;
      const pixels = (end - Math.max(event.start, now - SPAN)) / SPAN * wide;
      segment.classList.toggle("narrow", pixels < event.label.length * 7.4 + 16); // half a word says nothing: the colour does
    }
    for (const [key, segment] of segments) if (!seen.has(key)) { segment.remove(); segments.delete(key); }
  }
  requestAnimationFrame(timeline);
}

// --- our own camera, in browser mode: one picture in flight, the next when the program has taken it
let inFlight = false;
$("camera").onclick = async () => {
  try {
    own = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, height: { ideal: 480 }, facingMode: "environment" } });
  } catch (error) {
    $("notice-text").textContent = navigator.mediaDevices ? `The camera was not opened: ${error.message}`
      : "A browser gives its camera only to localhost or https pages.";
    return;
  }
  const video = $("own");
  video.srcObject = own;
  video.hidden = false;
  canvas.hidden = true;
  await video.play();
  const shot = document.createElement("canvas");
  const mine = own;
  const send = () => {
    if (own !== mine) return; // switched away
    if (socket.readyState === WebSocket.OPEN && !inFlight && video.videoWidth) {
      inFlight = true;
      const scale = Math.min(1, 640 / Math.max(video.videoWidth, video.videoHeight));
      [shot.width, shot.height] = [Math.round(video.videoWidth * scale), Math.round(video.videoHeight * scale)];
      shot.getContext("2d").drawImage(video, 0, 0, shot.width, shot.height);
      const taken = performance.now();
      shot.toBlob(async (blob) => {
        const head = new DataView(new ArrayBuffer(8));
        head.setFloat64(0, taken, true);
        if (blob && socket.readyState === WebSocket.OPEN) socket.send(await new Blob([head, blob]).arrayBuffer());
        else inFlight = false;
      }, "image/jpeg", 0.8);
    }
    video.requestVideoFrameCallback ? video.requestVideoFrameCallback(send) : setTimeout(send, 33);
  };
  send();
};

connect();
timeline();
