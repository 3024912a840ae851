// Models and what they say: scores beside the model's own evaluation, their trend, and what a score rests on.
import { json, post, save, send, watch } from "./api.js";
import { clock, sheet } from "./view.js";

// What is written of a model, and how it ends.
const FORMS = { onnx: "onnx", card: "onnx.json", safetensors: "safetensors" };

// What an evaluation counts, by its level: a labelled recording is a draw of its own.
const UNITS = { draw: "recordings or draws", "draw-head": "recordings or draws", visit: "visits", window: "windows" };

export class Predict {
  constructor(page) {
    Object.assign(this, page, { found: null, model: null, target: 0, busy: false, long: null, scoring: false, ending: "" });
    const { by } = this;
    by("model").addEventListener("change", () => this.choose());
    by("score").addEventListener("click", () => this.score());
    by("why").addEventListener("click", () => this.why());
    by("score-folder").addEventListener("click", () => this.folder());
    by("cancel").addEventListener("click", () => this.cancel());
    by("import").addEventListener("click", () => by("model-file").click());
    by("model-file").addEventListener("change", () => this.take());
    for (const form of Object.keys(FORMS)) by(`export-${form}`).addEventListener("click", () => this.export(form));
    by("trend").addEventListener("pointerdown", (event) => {
      this.view.start = event.offsetX / by("trend").clientWidth * this.view.longest - this.view.seconds / 2;
      this.redraw();
    });
  }

  async list(wanted) {
    const models = await json("/api/models");
    this.models = models;
    this.by("model").replaceChildren(...models.map((model) => new Option(model.name, model.id)));
    if (wanted) this.by("model").value = wanted;
    this.#tellForms();
  }

  #tellForms() {
    const folder = this.models.find((model) => model.id === this.by("model").value)?.folder;
    for (const form of Object.keys(FORMS)) this.by(`export-${form}`).disabled = !folder;
  }

  // One thing at a time; the buttons say so.
  async #doing(what, work) {
    if (this.busy) { this.say("Wait: the model is at work."); return undefined; }
    Object.assign(this, { busy: true, ending: "" });
    this.say(what);
    this.now = this.trying(async () => { const made = await work(); this.say(this.ending); return made; }).finally(() => { this.busy = false; });
    return this.now;
  }

  // Something long, with a bar and the time left once it lasts; undefined where it was cancelled.
  async #watched(path, body) {
    const { by } = this, running = this.long = new AbortController();
    try {
      return await watch(path, body, running.signal, ({ share, seconds_left }) => {
        by("working").hidden = false;
        by("working-bar").value = share;
        by("working-said").textContent = share ? `${Math.floor(share * 100)} %, ${clock(seconds_left)} left` : "waiting for its turn, or reading";
      });
    } catch (cause) {
      if (!running.signal.aborted) throw cause;
      return undefined;
    } finally {
      this.long = null;
      by("working").hidden = true;
    }
  }

  cancel(said = "Cancelled.") {
    if (this.long) this.ending = said;
    this.long?.abort();
  }

  async choose() {
    await this.forget();
    this.#tellForms();
    return this.#doing("Opening the model ...", () => this.#describe());
  }

  async #describe() {
    if (!this.models) await this.list();
    const id = this.by("model").value;
    if (this.model?.id === id) return this.model;
    const model = this.model = await json(`/api/models/${id}`);
    const lead = model.leads[0] === "first" ? "any one lead" : `${model.leads.length > 1 ? "leads" : "lead"} ${model.leads.join(", ")}`;
    const size = model.n_parameters ? `, ${(model.n_parameters / 1e6).toFixed(2)} M parameters` : "";
    const meanings = Object.entries(model.meanings ?? {}).map(([target, meaning]) => `${target} ${meaning}`).join(", ");
    this.by("model-said").textContent = `${model.model}${size}; takes ${lead} at ${model.fs} Hz (resampled to it); ${model.targets.length} targets${meanings && ` (${meanings})`}, ${model.head}.`
      + (Object.keys(model.results).length ? ` AUROC and CI: of its own evaluation, on ${UNITS[Object.values(model.results)[0].level] ?? "what was"} held out from its training.${model.from_weights ? " It was started from another model, which may have learned from them." : ""}` : " No evaluation stands beside this model: its scores have no CIs here.");
    return model;
  }

  // Of another recording, lead or model nobody waits for the score any more.
  async forget() {
    this.found = null;
    this.view.saliency = null;
    for (const id of ["scores", "trend"]) this.by(id).hidden = true;
    this.by("why").disabled = true;
    this.by("why-said").textContent = "";
    if (this.scoring) { this.cancel(""); await this.now; }
  }

  async score() {
    const record = this.record(), lead = this.view.lead;
    const found = await this.#doing("Scoring ...", async () => {
      const model = await this.#describe();
      if (record !== this.record() || lead !== this.view.lead) return undefined;
      this.scoring = true;
      return this.#watched(`/api/records/${record.id}/scores`, { model: model.id, lead: lead.number }).finally(() => { this.scoring = false; });
    });
    if (!found || record !== this.record() || lead !== this.view.lead) return;
    this.found = found;
    this.target = found.own.reduce((best, score, n) => score > (found.own[best] ?? -Infinity) ? n : best, 0);
    this.by("why").disabled = false;
    this.#table();
    this.redraw();
  }

  #table() {
    const { found, model } = this, number = (value) => Number(value).toFixed(3);
    const rows = found.targets.map((target, n) => {
      const row = document.createElement("tr"), own = model.results[target];
      row.setAttribute("aria-selected", String(n === this.target));
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = target;
      button.title = model.meanings?.[target] ?? "";
      row.addEventListener("click", () => { this.target = n; this.view.saliency = null; this.by("why-said").textContent = ""; this.#table(); this.redraw(); });
      const auroc = own?.auroc ? `${number(own.auroc)} [${own.auroc_low ? number(own.auroc_low) : "?"}, ${own.auroc_high ? number(own.auroc_high) : "?"}]` : "\u2013";
      const on = own ? `${own.n} (${own.n_positive} positive)` : "\u2013";
      row.append(...[button, found.own[n] === null ? "no score" : number(found.own[n]), auroc, on].map((content) => {
        const cell = document.createElement("td");
        cell.append(content);
        return cell;
      }));
      return row;
    });
    this.by("scores").tBodies[0].replaceChildren(...rows);
    this.by("scores").hidden = false;
    this.by("trend").hidden = found.scores.length < 2;
  }

  draw() {
    const canvas = this.by("trend"), { found, view } = this;
    if (!found || canvas.hidden) return;
    const { context, width, height } = sheet(canvas), { colour } = view;
    context.fillStyle = colour.sheet;
    context.fillRect(0, 0, width, height);
    const values = found.scores.map((scores) => scores[this.target]), known = values.filter((value) => value !== null);
    const [least, most] = found.head === "regression" ? known.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]) : [0, 1];
    const y = (value) => 18 + (most - value) / Math.max(most - least, 1e-9) * (height - 26);
    // Many windows share a column: all between its lowest and its highest score is filled.
    const columns = new Map();
    values.forEach((value, n) => {
      if (value === null) return;
      const from = Math.floor(found.start_s[n] / view.longest * width), to = Math.floor(Math.min(view.longest, found.start_s[n] + 10) / view.longest * width);
      for (let x = from; x <= Math.max(from, to - 1); x++) {
        const seen = columns.get(x);
        columns.set(x, seen ? [Math.min(seen[0], value), Math.max(seen[1], value)] : [value, value]);
      }
    });
    context.fillStyle = colour.accent;
    for (const [x, [low, high]] of columns) context.fillRect(x, y(high) - 1, 1, y(low) - y(high) + 2);
    context.globalAlpha = 0.2;
    context.fillRect(view.start / view.longest * width, 0, Math.max(2, Math.min(view.seconds, view.longest) / view.longest * width), height);
    context.globalAlpha = 1;
    context.fillStyle = colour.ink;
    context.font = "12px system-ui, sans-serif";
    context.fillText(`${found.targets[this.target]}, 10-s windows over ${clock(view.longest)}`, 5, 13);
    canvas.setAttribute("aria-label", `Scores of ${found.targets[this.target]} in ${known.length} windows of 10 s`);
  }

  async why() {
    const scores = this.found;
    if (!scores) return;
    const record = this.record(), { view } = this, { lead } = view, target = this.target;
    const middle = view.start + Math.min(view.seconds, view.longest) / 2, starts = scores.start_s;
    const start_s = starts.reduce((best, start) => Math.abs(start + 5 - middle) < Math.abs(best + 5 - middle) ? start : best, starts[0]);
    const found = await this.#doing("Taking patches out of the window ...", () =>
      post(`/api/records/${record.id}/saliency`, { model: this.model.id, lead: lead.number, start_s: Math.round(start_s), target }));
    if (!found || scores !== this.found || target !== this.target) return;
    view.saliency = found;
    this.by("why-said").textContent = `Below the trace, ${clock(found.start_s)} to ${clock(found.start_s + 10)}: by how much the log-odds of `
      + `${scores.targets[target]} fall (blue) or rise (violet) when 0.2 s become a straight line (occlusion). It says what this score rests on, not what is wrong with a heart.`;
    this.redraw();
  }

  async folder() {
    const batch = this.batch();
    await this.#doing("Scoring the whole folder ...", async () => {
      const model = await this.#describe();
      const made = await this.#watched(`/api/models/${model.id}/folder`, batch ? { batch } : {});
      if (made) await save("scores.csv", `/api/made/${made}`);
    });
  }

  async take() {
    const files = [...this.by("model-file").files].map((file) => [file.name, file]);
    this.by("model-file").value = "";
    if (!files.length) return;
    const found = await this.#doing("Checking the model ...", () => send(files, () => {}, "models"));
    if (!found) return;
    await this.trying(() => this.list(found.found[0]));
    await this.choose();
  }

  async export(form) {
    const id = this.by("model").value;
    await this.#doing("Writing the model ...", () => save(`model.${FORMS[form]}`, `/api/models/${id}/export?format=${form}`));
  }
}
