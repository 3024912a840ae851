// The page: records in, one in sight, every action by mouse, touch and keyboard.
import { json, post, send } from "./api.js";
import { Predict } from "./predict.js";
import { Tiles } from "./tiles.js";
import { Train } from "./train.js";
import { View, clock, drawMedian, drawOverview, paperLeads } from "./view.js";

const by = (id) => document.getElementById(id);
const view = new View(by("ecg"));
const GAINS = ["2.5", "5", "10", "20"], LAYOUTS = ["paper", "stack", "single"];
const LISTED_AT_ONCE = 200, MOST_BEAT_SECONDS = 300;
const predict = new Predict({ by, view, say, trying, redraw, record: () => shown, batch: () => lastBatch });
const train = new Train({ by, view, say, trying, batch: () => lastBatch });
let lastBatch = null;
let records = [], shown = null, median = null, drawing = false, opening = 0, settle = 0, listed = LISTED_AT_ONCE, before = null;
const faulty = new Map();

export function say(text, bad = false) {
  by("said").textContent = text;
  by("said").classList.toggle("bad", bad);
}

async function trying(work) {
  try { return await work(); } catch (cause) { say(cause.message, true); return undefined; }
}

// ---- recordings

function matching() {
  const wanted = by("filter").value.toLowerCase();
  return records.filter((record) => record.name.toLowerCase().includes(wanted));
}

function item(text, act) {
  const made = document.createElement("li"), button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.addEventListener("click", act);
  made.append(button);
  return made;
}

function list() {
  const found = matching(), place = found.findIndex((record) => record.id === shown?.id), seen = new Map();
  listed = Math.max(listed, Math.ceil((place + 1) / LISTED_AT_ONCE) * LISTED_AT_ONCE);
  by("count").textContent = found.length === records.length ? `${records.length}` : `${found.length} of ${records.length}`;
  const items = found.slice(0, listed).map((record) => {
    seen.set(record.name, (seen.get(record.name) ?? 0) + 1);
    const n = seen.get(record.name), made = item(n > 1 ? `${record.name} (${n})` : record.name, () => open(record.id));
    made.firstChild.dataset.id = record.id;
    return made;
  });
  const left = found.length - items.length;
  if (left > 0) items.push(item(`${left} more: show the next ${Math.min(left, LISTED_AT_ONCE)}`, () => { listed += LISTED_AT_ONCE; list(); }));
  by("records").replaceChildren(...items);
  mark();
}

// The one in sight, and those that could not be shown; the buttons stay the same, so that the focus stays.
function mark() {
  for (const button of by("records").querySelectorAll("[data-id]")) {
    const { id } = button.dataset;
    if (id === shown?.id) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
    button.classList.toggle("bad", faulty.has(id));
    button.title = faulty.get(id) ?? "";
  }
  const current = by("records").querySelector("[aria-current]");
  if (!current && matching().some((record) => record.id === shown?.id)) { list(); return; }
  current?.scrollIntoView({ block: "nearest" });
}

async function refresh() { records = await json("/api/records"); list(); }

async function take(files) {
  if (!files.length) return;
  const bar = by("sent");
  bar.hidden = false;
  bar.value = 0;
  await trying(async () => {
    const { batch, found: { ids, refused }, leftOut } = await send(files, (share) => { bar.value = share; });
    const without = [...leftOut, ...refused];
    const more = without.length ? ` Left out: ${without.slice(0, 5).join("; ")}${without.length > 5 ? `; and ${without.length - 5} more` : ""}.` : "";
    if (ids.length) lastBatch = batch;
    await refresh();
    if (ids.length) await open(ids[0]);
    else say(`No recording among these files. A WFDB recording is a .hea file together with its .dat or .mat; EDF, DICOM, aECG, SCP and others are one file each.${more}`, true);
    if (ids.length && !by("said").textContent) say(`${ids.length} recording${ids.length > 1 ? "s" : ""} opened.${more}`, Boolean(more));
  });
  bar.hidden = true;
}

const named = (files) => [...files].map((file) => [file.webkitRelativePath || file.name, file]);

async function filesOf(entry, before = "") {
  if (entry.isFile) return [[before + entry.name, await new Promise((good, bad) => entry.file(good, bad))]];
  const reader = entry.createReader(), found = [];
  for (;;) {
    const part = await new Promise((good, bad) => reader.readEntries(good, bad));
    if (!part.length) return found;
    for (const one of part) if (!one.name.startsWith(".")) found.push(...await filesOf(one, `${before}${entry.name}/`));
  }
}

function dropping() {
  const drop = by("drop");
  for (const kind of ["dragenter", "dragover"]) addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  addEventListener("drop", async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const files = entries.length ? await trying(async () => (await Promise.all(entries.map((entry) => filesOf(entry)))).flat()) : named(event.dataTransfer.files);
    if (files) await take(files);
  });
}

// ---- one record

// What a file of plain numbers leaves unsaid is asked of the user, in place of the ECG.
function ask(record, why) {
  view.tiles?.end();
  before = shown?.leads.length ? shown.id : before;
  shown = { ...record, leads: [] };
  predict.forget();
  mark();
  by("look").hidden = true;
  by("unsaid").hidden = false;
  by("unsaid-name").textContent = record.name;
  by("unsaid-why").textContent = why;
  by("unsaid-fs").value = record.said?.fs ?? "";
  by("unsaid-unit").value = record.said?.unit ?? "";
  by("unsaid-leads").value = record.said?.leads?.join(", ") ?? "";
  by("unsaid-delimiter").value = record.said?.delimiter ?? "";
  by("unsaid-decimal").value = record.said?.decimal ?? "";
  by("unsaid-header").value = { true: "yes", false: "no" }[record.said?.header] ?? "";
  by("unsaid-cancel").hidden = !before;
  by("unsaid-fs").focus();
}

async function answer(event) {
  event.preventDefault();
  const leads = by("unsaid-leads").value.split(",").map((name) => name.trim()).filter(Boolean), { id } = shown;
  const said = {
    fs: Number(by("unsaid-fs").value) || null, unit: by("unsaid-unit").value || null, leads: leads.length ? leads : null,
    delimiter: by("unsaid-delimiter").value || null, decimal: by("unsaid-decimal").value || null,
    header: { yes: true, no: false }[by("unsaid-header").value] ?? null, others: by("unsaid-others").checked,
  };
  if (await trying(() => post(`/api/records/${id}/said`, said))) await open(id);
}

async function open(id) {
  const turn = ++opening;
  // A second click on what is in sight changes nothing: a score may be under way.
  if (id === shown?.id && shown.leads.length) return;
  const record = await trying(() => json(`/api/records/${id}`).catch((cause) => {
    if (cause.unsaid) return { ...records.find((one) => one.id === id), why: cause.message };
    faulty.set(id, cause.message);
    mark();
    throw cause;
  }));
  if (!record || turn !== opening) return;
  if (!record.why && !record.leads.length) faulty.set(id, record.problems[0]?.reason ?? "no lead to show"); else faulty.delete(id);
  say("");
  if (record.why) { ask(record, record.why); return; }
  by("unsaid").hidden = true;
  by("resay").hidden = !Object.keys(record.said).length;
  view.tiles?.end();
  shown = record;
  mark();
  by("look").hidden = !record.leads.length;
  by("problems").textContent = record.problems.map((one) => `${one.name}: ${one.reason}`).join("  ");
  if (!record.leads.length) { say(`${record.name}: ${faulty.get(id)}`, true); return; }
  view.show(record, new Tiles(record, (cause) => { if (cause) say(cause.message, true); redraw(); }));
  by("ecg").dataset.drawn = `${record.id} part`;
  const rhythm = paperLeads(record)?.[1][0];
  if (rhythm) view.lead = rhythm;
  by("name").textContent = record.start ? `${record.name}, from ${record.start.slice(0, 19).replace("T", " ")}` : record.name;
  by("lead").replaceChildren(...record.leads.map((lead) => new Option(lead.name, lead.number)));
  by("layout").options[0].disabled = !paperLeads(record);
  median = null;
  predict.forget();
  chosen();
  redraw();
  quality();
}

// The two parts of the page; what was said belongs to the part before.
function turnTo(training) {
  say("");
  by("looking").hidden = training;
  by("training").hidden = !training;
  by(training ? "to-train" : "to-look").setAttribute("aria-current", "page");
  by(training ? "to-look" : "to-train").removeAttribute("aria-current");
  if (training) { train.open(); return; }
  redraw();
  // A run may have got its model meanwhile.
  trying(() => predict.list(by("model").value));
}

function chosen() {
  by("layout").value = view.layout;
  by("lead").value = view.lead.number;
  by("gain").value = String(view.mmPerMv);
  const speeds = [...by("speed").options].map((option) => option.value);
  by("speed").value = speeds.includes(String(view.mmPerSecond)) ? String(view.mmPerSecond) : "0";
  by("calipers").setAttribute("aria-pressed", String(Boolean(view.calipers)));
}

// Draws at the next frame; beats and facts follow when the picture rests.
function redraw() {
  if (!shown?.leads.length || drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const start = performance.now();
    const whole = view.draw();
    drawOverview(by("overview"), view);
    predict.draw();
    tell();
    by("ecg").dataset.drawn = `${shown.id} ${whole ? "whole" : "part"}`;
    performance.measure(whole ? "whole picture" : "part of a picture", { start, detail: shown.id });
  });
  clearTimeout(settle);
  settle = setTimeout(rest, 160);
}

function tell() {
  const stop = Math.min(view.start + view.seconds, view.longest);
  const { fs, name } = view.lead;
  by("where").textContent = `${clock(view.start, true)} to ${clock(stop, true)} of ${clock(view.longest, true)}; lead ${name}, ${Math.round(fs * 100) / 100} Hz; `
    + `${Math.round(view.mmPerSecond * 1000) / 1000} mm/s, ${view.mmPerMv} mm/mV`;
  by("ecg").setAttribute("aria-label", `ECG of ${shown.name}, lead ${name}, ${clock(view.start, true)} to ${clock(stop, true)}`);
  if (!view.calipers) { by("measured").textContent = ""; return; }
  const [first, second] = view.calipers.legs, long = Math.abs(second - first), levels = [first, second].map((leg) => view.mvAt(leg));
  const mv = levels.some((level) => level === undefined) ? "" : levels.some(Number.isNaN) ? "no signal at a leg" : `${(levels[1] - levels[0]).toFixed(3)} mV`;
  by("measured").textContent = `Calipers: ${Math.round(long * 1000)} ms, ${mv}${long > 0 ? `, ${Math.round(60 / long)} bpm` : ""}`;
}

function range() {
  const { fs, n_samples } = view.lead;
  return [Math.max(0, Math.floor(view.start * fs)), Math.min(n_samples, Math.ceil((view.start + view.seconds) * fs))];
}

let beatsOf = "";
async function rest() {
  // A recording without a lead may have been opened since.
  if (!shown.leads.length) return;
  const record = shown, lead = view.lead, [start, stop] = range(), what = `${record.id}/${lead.number}/${start}/${stop}`;
  if (what === beatsOf && view.beats) return;
  beatsOf = what;
  if (stop - start > MOST_BEAT_SECONDS * lead.fs || stop <= start) {
    // The beats of the part that was in sight before may stand in the picture.
    if (view.beats) redraw();
    view.beats = null;
    median = null;
    facts();
    return;
  }
  const path = `lead=${lead.number}&start=${start}&stop=${stop}`;
  const beats = await json(`/api/records/${record.id}/beats?${path}`).catch(() => null);
  if (what !== beatsOf) return;
  view.beats = beats;
  facts();
  redraw();
  const found = await json(`/api/records/${record.id}/median?${path}`).catch(() => null);
  if (what !== beatsOf) return;
  median = found;
  facts();
}

const middle = (values) => { const sorted = [...values].sort((a, b) => a - b), n = sorted.length; return n % 2 ? sorted[(n - 1) / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2; };

// Whether no window in sight has a rate, though there are peaks enough for one in each.
function isNoise(nPeaks) {
  if (!view.flags) return false;
  const { seconds, rate } = view.flags, first = Math.floor(view.start / seconds);
  const inSight = rate.slice(first, Math.max(first + 1, Math.ceil((view.start + view.seconds) / seconds)));
  return inSight.length > 0 && inSight.every((one) => one === null) && nPeaks > 3 * inSight.length;
}

function facts() {
  const { fs } = view.lead, beats = view.beats?.flat(), rows = [];
  // No interval reaches over a gap.
  const intervals = view.beats?.flatMap((stretch) => stretch.slice(1).map((beat, n) => (beat - stretch[n]) / fs));
  if (intervals?.length && isNoise(beats.length)) rows.push(["Heart rate", "none: what is in sight is too noisy to tell beats apart"]);
  else if (intervals?.length) {
    rows.push(["Heart rate", `${Math.round(60 / middle(intervals))} /min`], ["R peaks in sight", beats.length]);
    rows.push(["RR", `${Math.round(middle(intervals) * 1000)} ms (${Math.round(Math.min(...intervals) * 1000)} to ${Math.round(Math.max(...intervals) * 1000)})`]);
  } else if (beats) rows.push(["R peaks in sight", beats.length]);
  else rows.push(["R peaks", "zoom in to at most 5 minutes"]);
  const rates = view.flags?.rate.filter((rate) => rate !== null) ?? [];
  if (rates.length > 1) rows.push(["Whole record", `${Math.round(middle(rates))} /min (${Math.round(Math.min(...rates))} to ${Math.round(Math.max(...rates))}; medians of 10 s)`]);
  by("heart").replaceChildren(...rows.flatMap(([name, value]) => {
    const term = document.createElement("dt"), said = document.createElement("dd");
    term.textContent = name;
    said.textContent = value;
    return [term, said];
  }));
  drawMedian(by("median"), view, median);
  by("median-said").textContent = median?.leads.length ? `${median.leads[0].n_beats} beats in sight, 300 ms before to 500 ms after the R peak of lead ${view.lead.name}` : beats ? "No whole beat in sight." : "";
}

async function quality() {
  const record = shown, lead = view.lead;
  view.flags = null;
  by("quality").replaceChildren();
  facts();
  const found = await json(`/api/records/${record.id}/windows?lead=${lead.number}`).catch((cause) => { say(cause.message, true); return null; });
  if (!found || shown !== record || view.lead !== lead) return;
  view.flags = found;
  const lines = [];
  for (let n = 0; n < found.flags.length; n++) {
    if (!found.flags[n] || found.flags[n] === found.flags[n - 1]) continue;
    let last = n;
    while (found.flags[last + 1] === found.flags[n]) last++;
    lines.push([n * found.seconds, (last + 1) * found.seconds, Object.entries(found.names).filter(([flag]) => found.flags[n] & flag).map(([, name]) => name).join(", ")]);
  }
  by("quality").replaceChildren(...(lines.length ? lines.slice(0, 200) : [null]).map((line) => {
    const item = document.createElement("li");
    if (!line) { item.textContent = "nothing to note"; return item; }
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${clock(line[0])} to ${clock(Math.min(line[1], view.longest))}`;
    button.addEventListener("click", () => { view.start = line[0]; redraw(); });
    item.append(button, ` ${line[2]}`);
    return item;
  }));
  facts();
  redraw();
}

// ---- actions

function move(share) { view.start += share * view.seconds; redraw(); }

function zoom(factor, about = view.seconds / 2) {
  if (view.layout === "paper") setLayout("stack");
  const time = view.start + about, before = view.seconds;
  const least = view.width / view.longest / view.mm, most = 4000;
  view.mmPerSecond = Math.max(Math.min(least, 25), Math.min(most, view.mmPerSecond * factor));
  view.start = time - about * view.seconds / before;
  chosen();
  redraw();
}

function setLayout(layout) {
  if (layout === "paper") { if (!paperLeads(shown)) return; if (view.mmPerSecond < 12.5 || view.mmPerSecond > 100) view.mmPerSecond = 25; }
  view.layout = layout;
  chosen();
  redraw();
}

function setLead(number) {
  const lead = shown.leads.find((one) => one.number === number);
  if (!lead || lead === view.lead) return;
  view.lead = lead;
  view.beats = null;
  const [first, stop] = view.spanOf(lead);
  if (view.calipers?.legs.some((leg) => leg < first || leg > stop)) placeLegs();
  predict.forget();
  chosen();
  redraw();
  quality();
}

function nextLead(step) {
  const place = shown.leads.indexOf(view.lead) + step;
  if (shown.leads[place]) setLead(shown.leads[place].number);
}

function nextRecord(step) {
  const found = matching(), place = found.findIndex((record) => record.id === shown?.id) + step;
  if (found[place]) open(found[place].id);
}

// Into the strip that shows most of the chosen lead.
function placeLegs() {
  const [first, stop] = view.spanOf(view.lead), third = (stop - first) / 3;
  view.calipers = { legs: [first + third, first + 2 * third], hand: 1 };
}

function calipers() {
  if (view.calipers) view.calipers = null; else placeLegs();
  chosen();
  redraw();
}

function moveLeg(pixels) {
  if (!view.calipers) return;
  const { legs, hand } = view.calipers;
  legs[hand] = Math.max(0, Math.min(view.longest, legs[hand] + pixels / view.perSecond));
  redraw();
}

function legsToBeats() {
  const { fs } = view.lead, [first, stop] = view.spanOf(view.lead), centre = (first + stop) / 2;
  const pairs = (view.beats ?? []).flatMap((stretch) => stretch.slice(1).map((beat, n) => [stretch[n] / fs, beat / fs]));
  const off = ([one, other]) => Math.abs((one + other) / 2 - centre);
  const seen = pairs.filter(([one, other]) => one >= first && other <= stop).sort((a, b) => off(a) - off(b));
  if (!seen.length) { say("No two R peaks of this lead in sight."); return; }
  view.calipers = { legs: seen[0], hand: 1 };
  chosen();
  redraw();
}

const KEYS = {
  "o": () => by("files").click(),
  "/": () => by("filter").focus(),
  "n": () => nextRecord(1), "p": () => nextRecord(-1),
  "e": () => by("ecg").focus(),
  "ArrowLeft": (event) => move(event.shiftKey ? -1 : -0.2), "ArrowRight": (event) => move(event.shiftKey ? 1 : 0.2),
  "ArrowUp": () => nextLead(-1), "ArrowDown": () => nextLead(1),
  "Home": () => { view.start = 0; redraw(); }, "End": () => { view.start = view.longest; redraw(); },
  "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), "0": () => zoom(1e-9),
  "l": () => setLayout(LAYOUTS.slice(LAYOUTS.indexOf(view.layout) + 1).concat(LAYOUTS).find((name) => name !== "paper" || paperLeads(shown))),
  "g": () => { view.mmPerMv = Number(GAINS[(GAINS.indexOf(String(view.mmPerMv)) + 1) % GAINS.length]); chosen(); redraw(); },
  "c": calipers, "x": () => { if (view.calipers) { view.calipers.hand = 1 - view.calipers.hand; redraw(); } }, "b": legsToBeats,
  ",": () => moveLeg(-1), ".": () => moveLeg(1), "<": () => moveLeg(-20), ">": () => moveLeg(20),
  ";": () => moveLeg(-20), ":": () => moveLeg(20),
  "s": () => predict.score(), "w": () => predict.why(),
  "t": () => turnTo(by("training").hidden),
  "Escape": () => predict.cancel(),
  "?": () => by("help").showModal(),
};
const WITHOUT_RECORD = ["o", "/", "n", "p", "t", "?", "Escape"], WHILE_TRAINING = ["t", "?", "Escape"];

function keyboard() {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || by("help").open) return;
    if (event.target.closest?.("input, select, textarea")) { if (event.key === "Escape") event.target.blur(); return; }
    if (by("looking").hidden && !WHILE_TRAINING.includes(event.key)) return;
    const action = KEYS[event.key];
    if (!action || (!shown?.leads.length && !WITHOUT_RECORD.includes(event.key))) return;
    event.preventDefault();
    action(event);
  });
}

function pointer() {
  const canvas = by("ecg");
  let held = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (!shown || event.button) return;
    canvas.focus();
    const at = view.at(event.offsetX, event.offsetY);
    held = { x: event.offsetX, start: view.start, leg: null, strip: at?.strip };
    if (at?.lead === view.lead && view.calipers) {
      const gaps = view.calipers.legs.map((leg) => Math.abs(leg - at.time) * view.perSecond);
      const near = gaps[0] < gaps[1] ? 0 : 1;
      if (gaps[near] < 14) { held.leg = near; view.calipers.hand = near; }
    }
    if (at && held.leg === null) setLead(at.lead.number);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!held) return;
    if (held.leg !== null) {
      // Within the strip in which it was taken.
      view.calipers.legs[held.leg] = Math.max(0, Math.min(view.longest, view.timeIn(held.strip, event.offsetX)));
    } else view.start = held.start - (event.offsetX - held.x) / view.perSecond;
    redraw();
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { held = null; });
  canvas.addEventListener("wheel", (event) => {
    // The wheel alone scrolls the page, as everywhere; with Ctrl it zooms, with Shift it moves.
    if (event.ctrlKey) { event.preventDefault(); zoom(1.2 ** (-event.deltaY / 100), event.offsetX / view.perSecond); }
    else if (event.shiftKey || event.deltaX) { event.preventDefault(); view.start += (event.deltaX || event.deltaY) / view.perSecond; redraw(); }
  }, { passive: false });
  const overview = by("overview");
  const jump = (event) => { view.start = event.offsetX / overview.clientWidth * view.longest - view.seconds / 2; redraw(); };
  overview.addEventListener("pointerdown", (event) => { overview.setPointerCapture(event.pointerId); jump(event); });
  overview.addEventListener("pointermove", (event) => { if (event.buttons & 1) jump(event); });
}

function controls() {
  by("files-button").addEventListener("click", () => by("files").click());
  by("folder-button").addEventListener("click", () => by("folder").click());
  for (const id of ["files", "folder"]) by(id).addEventListener("change", async (event) => {
    const files = named(event.target.files).filter(([name]) => !name.split("/").some((part) => part.startsWith(".")));
    event.target.value = "";
    await take(files);
  });
  by("filter").addEventListener("input", () => { listed = LISTED_AT_ONCE; list(); });
  by("to-look").addEventListener("click", () => turnTo(false));
  by("to-train").addEventListener("click", () => turnTo(true));
  by("unsaid").addEventListener("submit", answer);
  by("unsaid-cancel").addEventListener("click", () => open(before));
  by("resay").addEventListener("click", () => ask(shown, "Said before:"));
  by("help-button").addEventListener("click", () => by("help").showModal());
  by("layout").addEventListener("change", (event) => setLayout(event.target.value));
  by("lead").addEventListener("change", (event) => setLead(Number(event.target.value)));
  by("speed").addEventListener("change", (event) => { if (Number(event.target.value)) { view.mmPerSecond = Number(event.target.value); redraw(); } });
  by("gain").addEventListener("change", (event) => { view.mmPerMv = Number(event.target.value); redraw(); });
  by("zoom-in").addEventListener("click", () => zoom(1.5));
  by("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
  by("fit").addEventListener("click", () => zoom(1e-9));
  by("calipers").addEventListener("click", calipers);
  addEventListener("resize", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { view.colours(); facts(); redraw(); });
}

dropping();
controls();
keyboard();
pointer();
await trying(async () => {
  await refresh();
  if (records.length) await open(records[0].id);
  else say("No recordings yet: drop some, or choose Files.");
  await predict.list();
});
