// The ECG on paper: what part of which leads is drawn where, and in what colours.
import { TILE } from "./tiles.js";

const MM = 96 / 25.4;
const PAPER = [["I", "aVR", "V1", "V4"], ["II", "aVL", "V2", "V5"], ["III", "aVF", "V3", "V6"]];
const plain = (name) => name.toLowerCase().replace(/^(lead|ecg)[ _]+/, "").trim();

// The leads of the 3 x 4 layout by rows; null where one of the twelve is missing.
export function paperLeads(record) {
  const found = PAPER.map((row) => row.map((name) => record.leads.find((lead) => plain(lead.name) === name.toLowerCase())));
  return found.flat().every(Boolean) ? found : null;
}

export class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.flags = null;
    this.beats = null;
    this.saliency = null;
    this.colours();
  }

  colours() {
    const style = getComputedStyle(document.documentElement);
    this.colour = Object.fromEntries(["trace", "sheet", "fine", "coarse", "mark", "caliper", "flag", "ink", "soft", "accent"]
      .map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  }

  show(record, tiles) {
    Object.assign(this, { record, tiles, flags: null, beats: null, saliency: null, start: 0, lead: record.leads[0], calipers: null });
    this.layout = paperLeads(record) ? "paper" : record.leads.length > 1 ? "stack" : "single";
    this.mmPerSecond = 25;
    this.mmPerMv = 10;
  }

  // Pixels of a millimetre: true to the screen, smaller where ten seconds would not fit.
  get mm() { return this.layout === "paper" ? Math.min(MM, this.width / 254) : MM; }
  get perSecond() { return this.mm * this.mmPerSecond; }
  get perMv() { return this.mm * this.mmPerMv; }
  get seconds() { return this.layout === "paper" ? 10 * 25 / this.mmPerSecond : this.width / this.perSecond; }
  get longest() { return this.record.seconds; }

  clamp() { this.start = Math.max(0, Math.min(this.start, this.longest - Math.min(this.seconds, this.longest))); }

  // Strips: lead, place and size on the canvas, and the time at their left edge.
  strips() {
    const mm = this.mm, row = (this.layout === "single" ? 60 : this.layout === "paper" ? 30 : 25) * mm;
    if (this.layout !== "paper") {
      const leads = this.layout === "single" ? [this.lead] : this.record.leads;
      return leads.map((lead, n) => ({ lead, x: 0, y: n * row, width: this.width, height: row, time: this.start }));
    }
    const rows = paperLeads(this.record), part = this.seconds / 4, width = part * this.perSecond;
    const found = rows.flatMap((names, r) => names.map((lead, c) => ({ lead, x: c * width, y: r * row, width, height: row, time: this.start + c * part })));
    const rhythm = this.record.leads.find((lead) => plain(lead.name) === "ii");
    return [...found, { lead: rhythm, x: 0, y: 3 * row, width: 4 * width, height: row, time: this.start, rhythm: true }];
  }

  fitCanvas() {
    const ratio = devicePixelRatio || 1;
    this.width = this.canvas.clientWidth;
    this.clamp();
    const strips = this.strips();
    const height = Math.ceil(Math.max(...strips.map((strip) => strip.y + strip.height)));
    if (this.canvas.style.height !== `${height}px`) this.canvas.style.height = `${height}px`;
    if (this.canvas.width !== Math.round(this.width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(this.width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    this.height = height;
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return strips;
  }

  // Draws everything; returns whether every sample in sight was there.
  draw() {
    const strips = this.fitCanvas();
    this.#paper();
    const level = new Map(strips.map((strip) => [strip.lead, this.level(strip.lead.fs)]));
    this.#wish(strips, level);
    let whole = true;
    for (const strip of strips) {
      this.#flagged(strip);
      whole = this.#trace(strip, level.get(strip.lead)) && whole;
      this.#marks(strip);
      this.#salient(strip);
    }
    this.#calipers(strips);
    return whole;
  }

  // The level whose columns are at most a pixel wide.
  level(fs) { return Math.max(0, Math.floor(Math.log2(fs / this.perSecond))); }

  #paper() {
    const { context, mm, width, height, colour } = this;
    context.fillStyle = colour.sheet;
    context.fillRect(0, 0, width, height);
    const pxPerSecond = this.perSecond;
    // At paper speeds a millimetre is what the eye measures by; beyond, seconds take its place.
    const step = this.layout === "paper" || pxPerSecond >= 40 ? mm : 0;
    for (const [every, name] of [[1, "fine"], [5, "coarse"]]) {
      // Lines of a millimetre on a small screen would be a grey ground.
      if (every === 1 && mm < 2) continue;
      context.strokeStyle = colour[name];
      context.lineWidth = 1;
      context.beginPath();
      if (step) {
        const offset = (this.layout === "paper" ? 0 : (this.start * pxPerSecond) % (step * every));
        for (let x = -offset; x < width; x += step * every) { const at = Math.round(x) + 0.5; context.moveTo(at, 0); context.lineTo(at, height); }
      }
      if (step || every === 5) for (let y = 0; y < height; y += mm * every) { const at = Math.round(y) + 0.5; context.moveTo(0, at); context.lineTo(width, at); }
      context.stroke();
    }
    if (!step) this.#clock();
  }

  #clock() {
    const { context, width, height, colour } = this;
    const steps = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200];
    const every = steps.find((seconds) => seconds * this.perSecond > 70) ?? 86400;
    context.strokeStyle = colour.coarse;
    context.fillStyle = colour.soft;
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "left";
    context.beginPath();
    for (let time = Math.ceil(this.start / every) * every; time <= this.start + this.seconds; time += every) {
      const x = Math.round((time - this.start) * this.perSecond) + 0.5;
      context.moveTo(x, 0);
      context.lineTo(x, height);
      if (x < width - 40) context.fillText(clock(time, every < 1), x + 3, height - 4);
    }
    context.stroke();
  }

  #wish(strips, levels) {
    const groups = new Map();
    for (const strip of strips) {
      const level = levels.get(strip.lead), { fs, number } = strip.lead;
      const [first, last] = this.#columns(strip, level);
      for (let index = Math.floor(first / TILE); index * TILE < last; index++) {
        if (this.tiles.length(number, level, index) <= 0) continue;
        const key = `${fs}/${level}/${index}`;
        if (!groups.has(key)) groups.set(key, { level, index, leads: new Set() });
        groups.get(key).leads.add(number);
      }
    }
    // Each tile's leads together: one request draws a page.
    for (const { level, index, leads } of groups.values()) this.tiles.want([...leads], level, index);
  }

  #columns(strip, level) {
    const step = 2 ** level, { fs } = strip.lead;
    const first = Math.floor(strip.time * fs / step) - 1, last = Math.ceil((strip.time + strip.width / this.perSecond) * fs / step) + 2;
    return [Math.max(0, first), last];
  }

  #trace(strip, level) {
    const { context, colour, perSecond, perMv, tiles } = this;
    const { fs, number } = strip.lead, step = 2 ** level, middle = strip.y + strip.height * 0.55;
    const [first, last] = this.#columns(strip, level);
    context.save();
    context.beginPath();
    // As on paper, a tall wave reaches into the strip above.
    context.rect(strip.x, 0, strip.width, this.height);
    context.clip();
    context.strokeStyle = colour.trace;
    context.lineWidth = 1.2;
    context.lineJoin = "round";
    context.beginPath();
    let pen = false;
    const line = (used) => (column, low, high) => {
      if (Number.isNaN(low)) { pen = false; return; }
      const x = strip.x + (column * 2 ** used / fs - strip.time) * perSecond;
      const top = middle - high * perMv, bottom = middle - low * perMv;
      if (pen) context.lineTo(x, top); else { context.moveTo(x, top); pen = true; }
      if (used) context.lineTo(x, Math.max(bottom, top + 0.6));
    };
    let whole = tiles.each(number, level, first, last, line(level));
    if (!whole) {
      // What a coarser picture knows is better than nothing while the finer one is on its way.
      for (let coarse = level + 1; coarse < level + 12; coarse++) {
        const shift = 2 ** (coarse - level);
        context.beginPath();
        pen = false;
        if (tiles.each(number, coarse, Math.floor(first / shift), Math.ceil(last / shift), line(coarse))) break;
      }
    }
    context.stroke();
    context.fillStyle = colour.ink;
    context.font = "600 12px system-ui, sans-serif";
    context.textAlign = "left";
    context.fillText(strip.lead.name.slice(0, 24), strip.x + 5, strip.y + 14);
    if (this.layout === "paper" && strip.x && !strip.rhythm) {
      context.strokeStyle = colour.soft;
      context.beginPath();
      context.moveTo(strip.x + 0.5, middle - 8);
      context.lineTo(strip.x + 0.5, middle + 8);
      context.stroke();
    }
    context.restore();
    return whole;
  }

  #flagged(strip) {
    if (!this.flags || strip.lead !== this.lead) return;
    const { context, colour } = this;
    const long = this.flags.seconds;
    context.save();
    context.globalAlpha = 0.45;
    context.fillStyle = colour.flag;
    const first = Math.max(0, Math.floor(strip.time / long)), last = (strip.time + strip.width / this.perSecond) / long;
    for (let n = first; n < Math.min(last, this.flags.flags.length); n++) {
      if (!this.flags.flags[n]) continue;
      const left = Math.max(strip.x, strip.x + (n * long - strip.time) * this.perSecond);
      const right = Math.min(strip.x + strip.width, strip.x + ((n + 1) * long - strip.time) * this.perSecond);
      context.fillRect(left, strip.y, Math.max(1, right - left), strip.height);
    }
    context.restore();
  }

  #marks(strip) {
    if (!this.beats || strip.lead !== this.lead) return;
    const { context, colour } = this;
    context.fillStyle = colour.mark;
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "center";
    // Small strips have small marks, at their upper edge.
    const size = Math.min(1, strip.height / 80), top = strip.y + (size < 1 ? 1 : 18);
    for (const stretch of this.beats) {
      let before = null;
      for (const beat of stretch) {
        const x = strip.x + (beat / strip.lead.fs - strip.time) * this.perSecond;
        if (x >= strip.x && x <= strip.x + strip.width) {
          context.beginPath();
          context.moveTo(x - 4 * size, top);
          context.lineTo(x + 4 * size, top);
          context.lineTo(x, top + 7 * size);
          context.fill();
          if (size === 1 && before !== null && x - before > 44 && before >= strip.x) context.fillText(`${Math.round((x - before) / this.perSecond * 1000)}`, (x + before) / 2, top + 8);
        }
        before = x;
      }
    }
  }

  // A strip below the trace: how much of the score each fifth of a second carries.
  #salient(strip) {
    if (!this.saliency || strip.lead !== this.lead) return;
    const { context, colour } = this, { start_s, patch_s, fall } = this.saliency;
    const most = Math.max(...fall.map((value) => Math.abs(value ?? 0)), 1e-9);
    context.save();
    fall.forEach((value, n) => {
      const left = Math.max(strip.x, strip.x + (start_s + n * patch_s - strip.time) * this.perSecond);
      const right = Math.min(strip.x + strip.width, strip.x + (start_s + (n + 1) * patch_s - strip.time) * this.perSecond);
      if (right <= left) return;
      context.globalAlpha = Math.abs(value ?? 0) / most;
      context.fillStyle = value > 0 ? colour.mark : colour.caliper;
      context.fillRect(left, strip.y + strip.height - 12, right - left + 0.5, 11);
    });
    context.restore();
  }

  // First and last time of a lead in the widest strip that shows it.
  spanOf(lead) {
    const strip = this.strips().filter((one) => one.lead === lead).reduce((best, one) => one.width > best.width ? one : best);
    return [strip.time, Math.min(strip.time + strip.width / this.perSecond, this.longest)];
  }

  timeIn(strip, x) { return strip.time + Math.max(0, Math.min(strip.width, x - strip.x)) / this.perSecond; }

  // Strip, lead and time at a place of the canvas.
  at(x, y) {
    const strip = this.strips().find((one) => x >= one.x && x < one.x + one.width && y >= one.y && y < one.y + one.height);
    return strip ? { strip, lead: strip.lead, time: this.timeIn(strip, x) } : null;
  }

  // The legs, in every strip of the chosen lead that shows their time.
  #calipers(strips) {
    if (!this.calipers) return;
    const { context, colour } = this;
    context.strokeStyle = context.fillStyle = colour.caliper;
    for (const strip of strips.filter((one) => one.lead === this.lead)) {
      this.calipers.legs.forEach((time, number) => {
        const x = strip.x + (time - strip.time) * this.perSecond;
        if (x < strip.x || x > strip.x + strip.width) return;
        context.lineWidth = number === this.calipers.hand ? 2.5 : 1.2;
        context.beginPath();
        context.moveTo(x, strip.y + 2);
        context.lineTo(x, strip.y + strip.height - 2);
        context.stroke();
        const mv = this.mvAt(time);
        if (mv !== undefined && !Number.isNaN(mv)) {
          context.beginPath();
          context.arc(x, strip.y + strip.height * 0.55 - mv * this.perMv, 4, 0, 7);
          context.fill();
        }
      });
    }
  }

  mvAt(time) {
    const place = Math.round(time * this.lead.fs);
    if (place < 0 || place >= this.lead.n_samples) return undefined;
    const found = this.tiles.sample(this.lead.number, place);
    if (found === undefined) this.tiles.want([this.lead.number], 0, Math.floor(place / TILE));
    return found;
  }
}

export function clock(seconds, fine = false) {
  const whole = Math.floor(seconds + 1e-9), two = (n) => String(n).padStart(2, "0");
  const text = `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
  return fine ? `${text}.${Math.floor((seconds - whole) * 10)}` : text;
}

// An empty canvas as large as its place on the screen, to be drawn on in CSS pixels.
export function sheet(canvas) {
  const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, height };
}

// The whole lead as a band, with what is in sight and where the quality is poor.
export function drawOverview(canvas, view) {
  const { context, width, height } = sheet(canvas), { lead, tiles, colour, flags } = view;
  const level = Math.max(0, Math.ceil(Math.log2(Math.max(1, lead.n_samples / TILE))));
  tiles.want([lead.number], level, 0);
  if (flags) {
    context.fillStyle = colour.flag;
    flags.flags.forEach((flag, n) => { if (flag) context.fillRect(n * flags.seconds / view.longest * width, 0, Math.max(1, flags.seconds / view.longest * width), height); });
  }
  let least = Infinity, most = -Infinity;
  tiles.each(lead.number, level, 0, TILE, (_, low, high) => { if (low < least) least = low; if (high > most) most = high; });
  const scale = (height - 6) / Math.max(most - least, 0.1), columns = lead.n_samples / 2 ** level;
  context.strokeStyle = colour.soft;
  context.beginPath();
  tiles.each(lead.number, level, 0, TILE, (column, low, high) => {
    const x = column / columns * width, top = 3 + (most - high) * scale;
    context.moveTo(x, top);
    context.lineTo(x, Math.max(3 + (most - low) * scale, top + 1));
  });
  context.stroke();
  const left = view.start / view.longest * width, wide = Math.max(3, Math.min(view.seconds, view.longest) / view.longest * width);
  context.globalAlpha = 0.25;
  context.fillStyle = colour.accent;
  context.fillRect(left, 0, wide, height);
  context.globalAlpha = 1;
  context.strokeStyle = colour.accent;
  context.lineWidth = 2;
  context.strokeRect(left + 1, 1, Math.max(1, wide - 2), height - 2);
}

// Median beats of some leads beside one another, on paper of their own.
export function drawMedian(canvas, view, found) {
  const { context, width, height } = sheet(canvas), { colour } = view;
  context.fillStyle = colour.sheet;
  context.fillRect(0, 0, width, height);
  const leads = found?.leads ?? [];
  if (!leads.length) return;
  const across = leads.length > 4 ? 4 : leads.length, down = Math.ceil(leads.length / across);
  const values = leads.flatMap((lead) => lead.mv.filter((mv) => mv !== null));
  const least = Math.min(...values), most = Math.max(...values), cellW = width / across, cellH = height / down;
  const scale = (cellH - 18) / Math.max(most - least, 0.2);
  context.font = "600 11px system-ui, sans-serif";
  leads.forEach((lead, n) => {
    const left = (n % across) * cellW, top = Math.floor(n / across) * cellH;
    context.strokeStyle = lead.number === view.lead.number ? colour.accent : colour.trace;
    context.lineWidth = 1.4;
    context.beginPath();
    let pen = false;
    lead.mv.forEach((mv, t) => {
      if (mv === null) { pen = false; return; }
      const x = left + 3 + t / (lead.mv.length - 1) * (cellW - 6), y = top + 15 + (most - mv) * scale;
      if (pen) context.lineTo(x, y); else context.moveTo(x, y);
      pen = true;
    });
    context.stroke();
    context.fillStyle = colour.ink;
    context.fillText(lead.name.slice(0, 10), left + 4, top + 12);
  });
}
