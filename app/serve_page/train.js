// Trainings: data looked at, a config made, a run started, watched, stopped, resumed, compared.
import { json, post, save, send } from "./api.js";
import { drawLines } from "./charts.js";

const CHOICES = ["t-path", "t-labels", "t-val", "t-test", "t-seed", "t-start", "t-train", "t-model", "t-head", "t-lead", "t-epochs", "t-batch", "t-rate"];
const SPLITS = ["train", "val", "test"];
const three = (value) => Number(value).toFixed(3).replace(/^-(0\.0+)$/, "$1");

function element(tag, ...content) {
  const made = document.createElement(tag);
  made.append(...content);
  return made;
}

function table(head, rows) {
  const found = element("table", element("thead", element("tr", ...head.map((text) => Object.assign(element("th", text), { scope: "col" })))));
  found.append(element("tbody", ...rows.map((row) => element("tr", ...row.map((cell) => element("td", cell))))));
  return found;
}

function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds)), two = (n) => String(n).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

export class Train {
  constructor(page) {
    Object.assign(this, page, { runs: [], finished: null, name: null, labels: null, dropped: null, edited: false, stale: false, wrong: "", state: "", makes: 0, wait: 0, turn: 0 });
    this.journal = { after: 0, steps: new Map(), checks: new Map(), total: 0 };
    const { by } = this;
    for (const id of CHOICES) by(id).addEventListener("change", () => this.#changed(id));
    by("t-config").addEventListener("input", () => this.#edit(true));
    by("t-make").addEventListener("click", () => { this.#edit(false); this.#follow(); });
    by("t-look").addEventListener("click", () => this.#look());
    by("t-labels-button").addEventListener("click", () => by("t-labels-file").click());
    by("t-labels-file").addEventListener("change", () => this.#takeLabels());
    by("t-dropped").addEventListener("click", () => this.#useDropped());
    by("new-run").addEventListener("submit", (event) => { event.preventDefault(); this.#start(); });
    by("compare").addEventListener("click", () => this.#compare());
    for (const what of ["stop", "resume"]) by(what).addEventListener("click", () => this.#ask(what));
    by("report").addEventListener("click", () => this.#report());
    for (const form of ["onnx", "safetensors"]) by(`run-${form}`).addEventListener("click", () => this.#export(form));
    addEventListener("resize", () => this.#draw());
    document.addEventListener("visibilitychange", () => this.#poll());
  }

  get visible() { return !this.by("training").hidden && !document.hidden; }

  async open() {
    this.by("t-dropped").disabled = !this.batch();
    this.finished = null;
    await this.#poll();
  }

  // What a training can start from, anew when a run has got its model.
  async #models() {
    const finished = this.runs.filter((run) => run.has_model).map((run) => run.name).join("/");
    if (finished === this.finished) return;
    this.finished = finished;
    const models = await json("/api/models"), start = this.by("t-start"), chosen = start.value;
    start.replaceChildren(new Option("scratch", ""), ...models.filter((model) => model.trainable).map((model) => new Option(model.name, model.id)));
    start.value = [...start.options].some((option) => option.value === chosen) ? chosen : "";
  }

  // ---- data and config

  #wish() {
    const { by } = this, number = (id) => Number(by(id).value);
    return {
      path: by("t-path").value.trim(), labels: by("t-labels").value.trim(), seed: number("t-seed"), val_fraction: number("t-val"),
      test_fraction: number("t-test"), start: by("t-start").value, model: by("t-model").value, train: by("t-train").value,
      head: by("t-head").value, lead: by("t-lead").value.trim(), epochs: number("t-epochs"), batch_size: number("t-batch"),
      learning_rate: number("t-rate"), ...(this.dropped && { recordings: this.dropped }), ...(this.labels && { labels_file: this.labels }),
    };
  }

  // A text that was changed by hand is what runs, until it is made anew; the page says which of the two it is.
  #edit(edited) {
    this.edited = edited;
    this.stale = false;
    this.#tellEdited();
  }

  #tellEdited() {
    const said = this.by("t-edited");
    said.hidden = !this.edited;
    said.classList.toggle("bad", this.stale);
    said.textContent = this.stale ? "This text was changed by hand, and the choices above after it: they are not in it. \u201cMake it anew\u201d takes them, and drops what was changed by hand."
      : "Changed by hand: this text is what will run, whatever is chosen above.";
  }

  // The config follows the choices, unless it was changed by hand.
  async #follow() {
    if (this.edited) { this.stale = true; this.#tellEdited(); return; }
    try {
      await this.#make();
      // What was wrong with the choices is right now; what was said of something else stays.
      if (this.by("said").textContent === this.wrong) this.say("");
    } catch (cause) { this.wrong = cause.message; this.say(cause.message, true); }
  }

  #setFresh(fresh) {
    const { by } = this;
    by("t-rate").value = fresh ? "0.003" : "0.0003";
    // The model to start from decides these.
    by("t-model").disabled = by("t-lead").disabled = !fresh;
  }

  #changed(id) {
    const { by } = this;
    if (id === "t-path") this.dropped = null;
    if (id === "t-labels") this.labels = null;
    if (id === "t-start") {
      const fresh = !by("t-start").value;
      by("t-train").value = fresh ? "scratch" : "all";
      this.#setFresh(fresh);
    }
    if (id === "t-train" && by("t-train").value === "scratch" && by("t-start").value) { by("t-start").value = ""; this.#setFresh(true); }
    this.#follow();
  }

  async #make() {
    const wish = this.#wish(), turn = ++this.makes;
    if (!(wish.path || wish.recordings) || !(wish.labels || wish.labels_file)) return;
    const { config } = await post("/api/trainings/config", wish);
    // An older answer may come later, and what was typed meanwhile stays.
    if (turn !== this.makes || this.edited) return;
    this.by("t-config").value = config;
  }

  #useDropped() {
    this.dropped = this.batch();
    this.by("t-path").value = "";
    this.by("t-path").placeholder = "the files dropped last; they are copied into the run's folder";
    this.#follow();
  }

  async #takeLabels() {
    const [file] = this.by("t-labels-file").files;
    this.by("t-labels-file").value = "";
    if (!file) return;
    await this.trying(async () => {
      const { batch } = await send([["labels.csv", file]], () => {}, null);
      this.labels = batch;
      this.by("t-labels").value = "";
      this.by("t-labels").placeholder = `${file.name}; it is copied into the run's folder`;
      await this.#follow();
    });
  }

  async #look() {
    const found = this.by("t-found");
    found.replaceChildren(element("p", "Opening the recordings ..."));
    const data = await this.trying(() => post("/api/trainings/look", this.#wish()));
    if (!data) { found.replaceChildren(); return; }
    this.say("");
    const facts = element("dl");
    for (const [what, n] of data.flow) facts.append(element("dt", what), element("dd", n.toLocaleString("en")));
    facts.append(element("dt", "patients with several recordings"), element("dd", String(data.patients_with_several)));
    facts.append(element("dt", "patients in two splits"), element("dd", String(data.patients_in_two_splits)));
    const splits = SPLITS.map((split) => [split, String(data.splits[split].recordings), String(data.splits[split].patients)]);
    const share = (target, n) => {
      const known = target.positive[n] + target.negative[n];
      return known ? `${target.positive[n]} (${Math.round(100 * target.positive[n] / known)} %)` : "none labelled";
    };
    const targets = data.targets.map((target) => [target.name, ...SPLITS.map((_, n) => share(target, n)), String(target.missing.reduce((sum, n) => sum + n, 0))]);
    const values = data.values.map((value) => [value.name, ...value.measured.map(String)]);
    const poor = data.targets.filter((target) => [0, 2].some((n) => Math.min(target.positive[n], target.negative[n]) < 10)).map((target) => target.name);
    found.replaceChildren(facts, table(["split", "recordings", "patients"], splits));
    if (targets.length) found.append(table(["positive, share of the labelled", ...SPLITS, "not measured"], targets));
    if (values.length) found.append(table(["values measured", ...SPLITS], values));
    if (poor.length) found.append(element("p", `Fewer than 10 positive or negative recordings to train or test on: ${poor.slice(0, 12).join(", ")}. Their numbers will mean little.`));
    const blind = data.targets.filter((target) => Math.min(target.positive[1], target.negative[1]) < 1).map((target) => target.name);
    if (blind.length) found.append(element("p", `No positive or no negative recording in the validation split: ${blind.slice(0, 12).join(", ")}. The best network is chosen without them; give validation a larger share.`));
    if (data.lacking) found.append(Object.assign(element("p", `${data.lacking}. The training would leave them out.`), { className: "bad" }));
    if (data.left_out.length) {
      const list = element("ul", ...data.left_out.map(([record, reason]) => element("li", `${record}: ${reason}`)));
      found.append(element("details", element("summary", `left out: ${data.left_out.length}${data.left_out.length === 100 ? " and more" : ""}`), list));
    }
    for (const made of found.querySelectorAll("table")) { const scroll = element("div"); scroll.className = "scroll"; made.replaceWith(scroll); scroll.append(made); }
    const suits = this.by("t-head").value === data.head;
    this.by("t-head").value = data.head;
    if (!suits || !this.edited) await this.#follow();
  }

  async #start() {
    const name = this.by("t-name").value.trim();
    await this.trying(async () => {
      if (!this.edited) await this.#make();
      if (this.stale) {
        this.stale = false;
        throw new Error("The choices above were changed after the config's text was, and are not in it. \u201cMake it anew\u201d takes them; Start once more runs the text as it stands.");
      }
      const config = this.by("t-config").value;
      if (!config.trim()) throw new Error("No config yet: name the recordings and the labels above.");
      const uploads = { ...(this.dropped && { recordings: this.dropped }), ...(this.labels && { labels_file: this.labels }), start: this.by("t-start").value };
      await post("/api/trainings", { name, config, ...uploads });
      this.say(`${name} has been started; it goes on when this page is closed.`);
      this.by("t-name").value = "";
      this.#edit(false);
      this.#choose(name);
      await this.#make();
    });
  }

  // ---- runs

  async #poll() {
    clearTimeout(this.wait);
    if (!this.visible) return;
    const turn = ++this.turn;
    try {
      const { runs, below, folder } = await json("/api/trainings");
      if (turn !== this.turn) return;
      this.runs = runs;
      this.by("t-below").textContent = `The run's folder is made below ${below}; 'anyecg run' there does the same.`;
      if (!this.by("t-path").value && !this.dropped && folder) this.by("t-path").value = folder;
      if (!this.name && runs.length) this.name = runs[0].name;
      this.#list();
      await this.#models();
      if (this.name) await this.#details(turn);
    } catch (cause) { this.say(cause.message, true); }
    if (turn === this.turn) this.wait = setTimeout(() => this.#poll(), this.runs.some((run) => run.state === "running") ? 1000 : 5000);
  }

  #list() {
    const body = this.by("runs").tBodies[0], kept = new Map([...body.rows].map((row) => [row.dataset.name, row]));
    const rows = this.runs.map((run) => {
      const row = kept.get(run.name) ?? this.#row(run.name);
      const { progress } = run, share = progress ? ` ${Math.round(100 * progress.share)} %` : "";
      row.cells[2].textContent = run.state;
      row.cells[3].textContent = run.state === "done" ? "" : `${run.stage ?? "ending"}${share}`;
      row.setAttribute("aria-selected", String(run.name === this.name));
      row.querySelector("input").disabled = !run.has_report;
      return row;
    });
    // Rows stay the same elements, so that the focus stays.
    if (rows.length !== body.rows.length || rows.some((row, n) => row !== body.rows[n])) body.replaceChildren(...rows);
    this.#count();
  }

  #row(name) {
    const box = Object.assign(document.createElement("input"), { type: "checkbox", ariaLabel: `Compare ${name}` });
    box.addEventListener("change", () => this.#count());
    const button = Object.assign(element("button", name), { type: "button" });
    button.addEventListener("click", () => this.#choose(name));
    const row = element("tr", element("td", box), element("td", button), element("td"), element("td"));
    row.dataset.name = name;
    return row;
  }

  // The oldest first: it is what the others are compared with.
  #chosen() { return [...this.by("runs").tBodies[0].rows].filter((row) => row.querySelector("input").checked).map((row) => row.dataset.name).reverse(); }

  #count() { const n = this.#chosen().length; this.by("compare").disabled = n < 2 || n > 6; }

  #choose(name) {
    this.name = name;
    this.state = "";
    this.journal = { after: 0, steps: new Map(), checks: new Map(), total: 0 };
    this.#poll();
  }

  async #details(turn) {
    const { by, journal, name } = this;
    const run = await json(`/api/trainings/${encodeURIComponent(name)}?after=${journal.after}`);
    if (turn !== this.turn || journal !== this.journal) return;
    journal.after = run.next;
    for (const line of run.lines) {
      if (line.event === "start") journal.total = line.n_steps;
      if (line.event === "step" && line.loss !== null) journal.steps.set(line.step, line.loss);
      if (line.event === "validation") journal.checks.set(line.step, line);
    }
    by("run").hidden = false;
    by("run-name").textContent = name;
    const { progress } = run, left = progress?.seconds_left;
    // What was said of a run that goes on does not stand beside its end.
    if (this.state === "running" && run.state !== "running") this.say("");
    this.state = run.state;
    by("run-state").textContent = run.state === "running"
      ? `running: ${run.stage ?? "ending"}${progress ? `, ${Math.round(100 * progress.share)} %${left === null ? "" : `, ${clock(left)} left of this stage`}` : " ..."}`
      : `${run.state}${run.said ? `: ${run.said}` : ""}`;
    by("run-share").hidden = run.state !== "running" || !progress;
    by("run-share").value = progress?.share ?? 0;
    by("stages").replaceChildren(...run.stages.map((stage) => {
      const item = element("li", stage.name);
      item.className = stage.done ? "done" : stage.name === run.stage && run.state === "running" ? "now" : "";
      item.append(stage.done ? " \u2713" : "");
      return item;
    }));
    by("stop").disabled = run.state !== "running";
    by("resume").disabled = run.state === "running" || run.state === "done";
    by("report").disabled = !run.has_report;
    for (const form of ["onnx", "safetensors"]) by(`run-${form}`).disabled = !run.has_model;
    by("run-config").textContent = run.config;
    this.#results(run.results, /^weights = ".+"/m.test(run.config));
    this.#draw();
  }

  #results(results, isTuned) {
    this.by("run-tuned").hidden = !isTuned || !results.length;
    const cell = (row, metric) => row[metric] ? `${three(row[metric])} [${row[`${metric}_low`] ? `${three(row[`${metric}_low`])}, ${three(row[`${metric}_high`])}` : "no interval"}]` : "\u2013";
    this.by("run-results").hidden = !results.length || !("auroc" in results[0]);
    this.by("run-results").tBodies[0].replaceChildren(...results.map((row) =>
      element("tr", ...[row.target, `${row.n} (${row.n_positive})`, cell(row, "auroc"), cell(row, "auprc")].map((text) => element("td", text)))));
  }

  #draw() {
    if (!this.visible || this.by("run").hidden) return;
    const { journal } = this, { colour } = this.view, most = Math.max(journal.total, ...journal.steps.keys(), 1);
    const checks = [...journal.checks.values()].sort((a, b) => a.step - b.step), of = (key) => checks.filter((line) => line[key] !== null).map((line) => [line.step, line[key]]);
    const loss = [...journal.steps].sort(([a], [b]) => a - b);
    drawLines(this.by("loss-curve"), [
      { name: "training loss", colour: colour.soft, points: loss }, { name: "validation loss", colour: colour.accent, points: of("val_loss"), dots: true },
    ], { colour, most });
    drawLines(this.by("score-curve"), [{ name: "mean validation AUROC (R\u00b2 of values)", colour: colour.accent, points: of("val_score"), dots: true }], { colour, most });
    const last = checks.at(-1), said = (value) => value === null || value === undefined ? "not known" : three(value);
    this.by("loss-said").textContent = loss.length ? `Step ${loss.at(-1)[0]} of ${journal.total}: training ${three(loss.at(-1)[1])}${last ? `, validation ${said(last.val_loss)}` : ""}` : "";
    this.by("score-said").textContent = last ? `Epoch ${Number(last.epoch.toFixed(2))}: ${said(last.val_score)}` : "";
  }

  async #ask(what) {
    await this.trying(async () => {
      await post(`/api/trainings/${encodeURIComponent(this.name)}/${what}`);
      this.say(what === "stop" ? "Asked to save and stop." : "");
    });
    await this.#poll();
  }

  async #report() {
    await this.trying(async () => {
      const { path } = await post(`/api/trainings/${encodeURIComponent(this.name)}/report`);
      open(path, "_blank", "noopener");
    });
  }

  async #export(form) {
    await this.trying(async () => {
      const found = (await json("/api/models")).find((model) => model.name === this.name && model.folder);
      if (!found) throw new Error("This run has no finished model yet.");
      this.say("Writing the model ...");
      await save(`${this.name}.${form}`, `/api/models/${found.id}/export?format=${form}`);
      this.say("");
    });
  }

  async #compare() {
    const place = this.by("compared"), names = this.#chosen();
    place.replaceChildren(element("p", "Comparing ..."));
    const found = await this.trying(() => post("/api/trainings/compare", { names }));
    if (!found) { place.replaceChildren(); return; }
    this.say("");
    const rows = new Map(), interval = (row, key) => row[key] === null ? "\u2013" : `${three(row[key])} [${row[`${key}_low`] === null ? "no interval" : `${three(row[`${key}_low`])}, ${three(row[`${key}_high`])}`}]`;
    for (const row of found.rows) {
      const key = `${row.target}, ${row.metric.toUpperCase()}`;
      rows.set(key, [...rows.get(key) ?? [key], interval(row, "value"), ...(rows.has(key) ? [interval(row, "difference")] : [])]);
    }
    const head = ["", names[0], ...names.slice(1).flatMap((name) => [name, `${name} \u2212 ${names[0]}`])];
    const said = `${Math.round(100 * found.confidence)} % intervals of ${found.n_replicates} replicates that resample the ${found.unit}; the same ones for all models.`;
    place.replaceChildren(element("p", said), table(head, [...rows.values()]));
  }
}
