// Puts the page together: controls, one call at a time, and the instruments around it.

import { Api, ApiError } from "./api.js";
import { Call } from "./call.js";
import { EventPanel } from "./events.js";
import { BACKEND_TROUBLE, explainEnd, explainSetup } from "./explain.js";
import { Figures } from "./figures.js";
import { LevelMeter, FLOOR_DB } from "./meters.js";
import { MicrophoneError, listMicrophones, openMicrophone } from "./microphone.js";
import { SAMPLE_MS, StatsSampler } from "./stats.js";
import { Strip } from "./strip.js";
import { Timeline } from "./timeline.js";

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);

const api = new Api();
const timeline = new Timeline($("timeline"), $("setup-total"));
const figures = new Figures($("figures"), $("facts"));
const meters = { you: new LevelMeter(), far: new LevelMeter() };
const strip = new Strip($("strip"), meters.you, meters.far);
const events = new EventPanel({
  log: $("event-log"), form: $("event-form"), text: $("event-text"),
  send: $("event-send"), problem: $("event-problem"), note: $("events-note"),
}, (text) => call.send(text));

const LIVE_HINT = "What you say stands above the line, what comes back below it.";

/** The call at hand, or the last one. @type {Call|null} */
let call = null;
let audio = null;
let statsTimer = 0;
let latest = null;
let [silent, trouble] = [false, ""];

// For the console: earshot.call.connection.getStats()
globalThis.earshot = { get call() { return call; }, get sample() { return latest; } };

/** Shows how things stand. `state` drives the colours and the buttons. */
function show(state, headline, explanation = "") {
  document.body.dataset.state = state;
  say($("headline"), headline);
  say($("explanation"), explanation);
  const busy = state === "asking" || state === "ending";
  const inCall = state === "connecting" || state === "live";
  $("talk").textContent = inCall || state === "ending" ? "Hang up" : "Talk";
  $("talk").disabled = busy || (!inCall && $("backend").disabled);
  for (const control of [$("backend"), $("device"), $("key"), $("processing")]) {
    control.toggleAttribute("inert", inCall || busy);
  }
  $("mute").hidden = !inCall;
}

/** Written only when it changes: a screen reader speaks every writing. */
function say(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

/* Before a call */

async function loadBackends() {
  try {
    const names = await api.models();
    fillBackends(names);
    $("key-field").hidden = !api.key;
    greet(names);
  } catch (error) {
    $("backend").disabled = true;
    refuse(error);
  }
}

function fillBackends(names) {
  $("backend").replaceChildren(...names.map((name) => new Option(name, name)));
  $("backend").disabled = names.length === 0;
  const wanted = query.get("backend");
  if (wanted && names.includes(wanted)) $("backend").value = wanted;
  nameFarEnd();
}

function greet(names) {
  const wanted = query.get("backend");
  if (names.length === 0) {
    show("failed", "No backend to talk to.", "Start one and name it: earshot up --backend echo=/run/echo.sock");
  } else if (!window.isSecureContext) {
    openMicrophone({}).catch(refuse);
  } else if (wanted && !names.includes(wanted)) {
    show("idle", "Say something.", `There is no backend named ${wanted} here. You could talk to ${$("backend").value}.`);
  } else {
    show("idle", "Say something.",
      "Press Talk and speak. What the backend answers is in your ear a few milliseconds later.");
  }
}

function refuse(error) {
  if (error instanceof MicrophoneError) return show("failed", error.message, error.advice.replace(/\s+/g, " "));
  if (error instanceof ApiError && error.status === 401) {
    $("key-field").hidden = false;
    $("key").focus();
    if (api.key) return show("failed", "That key does not fit.", error.message);
    return show("idle", "This server wants a key.", "Enter the one that it was started with. It stays in this tab.");
  }
  return show("failed", ...explainSetup(error));
}

function nameFarEnd() {
  $("far-name").textContent = $("backend").value || "Backend";
}

async function fillDevices() {
  const chosen = $("device").value;
  const microphones = await listMicrophones();
  $("device").replaceChildren(new Option("Default", ""),
    ...microphones.map(({ deviceId, label }) => new Option(label, deviceId)));
  if (microphones.some(({ deviceId }) => deviceId === chosen)) $("device").value = chosen;
}

function microphoneSettings() {
  const settings = { deviceId: $("device").value };
  for (const box of $("processing").querySelectorAll("input")) settings[box.name] = box.checked;
  return settings;
}

/* A call */

async function talk() {
  show("asking", "May we listen?", "Your browser is asking whether this page may use the microphone.");
  clearInstruments();
  // Made inside the click, or a browser might keep it silent.
  audio = new AudioContext();
  let stream;
  try {
    stream = await openMicrophone(microphoneSettings());
  } catch (error) {
    silence();
    refuse(error);
    return;
  }
  void fillDevices();
  begin(new Call(api, $("backend").value, stream));
  show("connecting", `Connecting to ${call.backend}.`);
  await call.start();
}

function begin(next) {
  call = next;
  [silent, trouble] = [false, ""];
  const startedAt = performance.now();
  events.begin(() => (performance.now() - startedAt) / 1_000);
  call.addEventListener("state", () => stateChanged());
  call.addEventListener("milestone", () => timeline.update(call.milestones));
  call.addEventListener("remote", ({ detail }) => hear(detail));
  call.addEventListener("message", ({ detail }) => events.received(detail));
  call.addEventListener("channel", () => events.setOpen(call.channelOpen));
  call.addEventListener("interrupted", ({ detail }) => interrupted(detail));
  meters.you.attach(audio, call.stream);
  strip.start(showLevels);
  setMuted(false);
}

function hear(stream) {
  $("far").srcObject = stream;
  $("far").play().catch(() => events.note("The browser blocked the sound. Click anywhere on the page."));
  if (audio) meters.far.attach(audio, stream);
}

function stateChanged() {
  if (call.state === "live") {
    describeLive(null);
    startStats();
  } else if (call.state === "ending") {
    show("ending", "Hanging up.");
  } else if (call.state === "ended") {
    show("ended", "The call has ended.", explainEnd(call.outcome));
    finish();
  } else if (call.state === "failed") {
    show("failed", call.outcome.title, call.outcome.advice);
    finish();
    if (call.outcome.status === 401) $("key-field").hidden = false; // it was changed meanwhile
  }
}

function interrupted(nowSilent) {
  silent = nowSilent;
  describeLive(null);
}

/** The sentence of a call that is up. @param {object|null} view the edge's, when known */
function describeLive(view) {
  if (call.state !== "live") return;
  if (view) trouble = BACKEND_TROUBLE[view.backend_state] ?? "";
  if (silent) {
    show("live", "The line is silent.", "The edge does not answer at the moment. Waiting for it to come back.");
  } else if (trouble) {
    show("live", `${call.backend} is not there.`, trouble);
  } else {
    show("live", `You are talking to ${call.backend}.`, LIVE_HINT);
  }
}

function finish() {
  clearInterval(statsTimer);
  meters.you.reset();
  meters.far.reset();
  strip.stop();
  showLevels();
  silence();
  tick();
}

function silence() {
  void audio?.close();
  audio = null;
  $("far").srcObject = null;
}

/* Instruments */

function clearInstruments() {
  timeline.update({});
  figures.clear();
  $("connection-note").textContent = "";
}

function showLevels() {
  for (const [side, meter] of Object.entries(meters)) {
    const quiet = !meter.attached || meter.heldDb <= FLOOR_DB;
    const reading = $(`level-${side}`);
    reading.textContent = quiet ? "–" : `${Math.round(meter.heldDb)}`.replace("-", "−");
    reading.parentElement.dataset.empty = quiet ? "yes" : "no";
  }
}

function startStats() {
  const sampler = new StatsSampler(call.connection);
  const sampled = call;
  const take = async () => {
    // The edge's own view beside the browser's; a call does not depend on it.
    const [sample, view] = await Promise.all([
      sampler.sample(), api.call(sampled.id).catch(() => null),
    ]);
    if (sampled !== call || call.state !== "live") return;
    latest = sample;
    figures.update(sample);
    figures.facts(call.id, sample, view);
    describeLive(view);
    call.heed(view);
    tick();
  };
  void take();
  statsTimer = setInterval(take, SAMPLE_MS);
  setTimeout(() => {
    if (sampled === call && audio && audio.state !== "running") {
      events.note("The browser has no sound device to run on: the levels stay flat.");
    }
  }, 2 * SAMPLE_MS);
}

function tick() {
  if (!call?.liveAt) return;
  const seconds = Math.floor(((call.endedAt || performance.now()) - call.liveAt) / 1_000);
  $("connection-note").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

/* What the person does */

function setMuted(muted) {
  for (const track of call.stream.getAudioTracks()) track.enabled = !muted;
  $("mute").setAttribute("aria-pressed", String(muted));
  $("mute").textContent = muted ? "Muted" : "Mute";
}

$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  const { state } = document.body.dataset;
  if (state === "connecting" || state === "live") void call.hangUp();
  else if (state !== "asking" && state !== "ending") void talk();
});
$("mute").addEventListener("click", () => setMuted($("mute").getAttribute("aria-pressed") !== "true"));
$("backend").addEventListener("change", () => {
  nameFarEnd();
  const url = new URL(location.href);
  url.searchParams.set("backend", $("backend").value);
  history.replaceState(null, "", url);
});
$("key").addEventListener("change", () => { api.key = $("key").value; void loadBackends(); });
document.addEventListener("click", () => {
  if ($("far").srcObject && $("far").paused) void $("far").play();
});
window.addEventListener("pagehide", () => call?.abandon());

$("host").textContent = location.host;
if (query.get("raw") === "1") {
  for (const box of $("processing").querySelectorAll("input")) box.checked = false;
}
$("key").value = api.key;
void fillDevices();
void loadBackends();
