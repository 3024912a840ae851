// The samples of a record: tiles of 4096 columns at levels of 1, 2, 4 ... samples a column, fetched as they come into sight.
import { floats } from "./api.js";

export const TILE = 4096;
const MOST_TILES = 600, MOST_AT_ONCE = 6;

export class Tiles {
  constructor(record, changed) {
    this.record = record;
    this.changed = changed;
    this.kept = new Map();
    this.asked = new Map();
    this.waiting = [];
    this.nAsked = 0;
    this.ended = false;
    this.count = new Map(record.leads.map((lead) => [lead.number, lead.n_samples]));
  }

  end() { this.ended = true; this.waiting = []; }

  // The tile, or undefined while it is on its way.
  get(lead, level, index) {
    const key = `${lead}/${level}/${index}`;
    const found = this.kept.get(key);
    if (found) { this.kept.delete(key); this.kept.set(key, found); }
    return found;
  }

  // Asks for a tile of some leads, those that are not there yet; the latest wish is granted first.
  want(leads, level, index) {
    const missing = leads.filter((lead) => !this.kept.has(`${lead}/${level}/${index}`) && !this.asked.has(`${lead}/${level}/${index}`));
    if (!missing.length) return;
    for (const lead of missing) this.asked.set(`${lead}/${level}/${index}`, true);
    this.waiting.push({ leads: missing, level, index });
    while (this.waiting.length > 24) this.#forget(this.waiting.shift());
    this.#next();
  }

  #forget({ leads, level, index }) { for (const lead of leads) this.asked.delete(`${lead}/${level}/${index}`); }

  async #next() {
    if (this.nAsked >= MOST_AT_ONCE || this.ended) return;
    const wish = this.waiting.pop();
    if (!wish) return;
    this.nAsked += 1;
    try {
      const { leads, level, index } = wish;
      const data = await floats(`/api/records/${this.record.id}/tiles/${level}/${index}?leads=${leads.join("-")}`);
      let place = 0;
      for (const lead of leads) {
        const n = this.length(lead, level, index) * (level ? 2 : 1);
        this.kept.set(`${lead}/${level}/${index}`, data.subarray(place, place + n));
        place += n;
      }
      while (this.kept.size > MOST_TILES) this.kept.delete(this.kept.keys().next().value);
      if (!this.ended) this.changed();
    } catch (cause) {
      if (!this.ended) this.changed(cause);
    } finally {
      this.#forget(wish);
      this.nAsked -= 1;
      this.#next();
    }
    this.#next();
  }

  // Columns of a tile; the last one of a lead is shorter.
  length(lead, level, index) {
    const columns = Math.ceil(this.count.get(lead) / 2 ** level);
    return Math.max(0, Math.min(TILE, columns - index * TILE));
  }

  // Calls take(column, low, high) for the columns of [first, last) that are there; says whether all were.
  each(lead, level, first, last, take) {
    const columns = Math.ceil(this.count.get(lead) / 2 ** level);
    let whole = true;
    for (let column = Math.max(0, first); column < Math.min(last, columns);) {
      const index = Math.floor(column / TILE), stop = Math.min(last, columns, (index + 1) * TILE);
      const tile = this.get(lead, level, index);
      if (!tile) whole = false;
      else if (level === 0) for (let c = column; c < stop; c++) take(c, tile[c - index * TILE], tile[c - index * TILE]);
      else for (let c = column; c < stop; c++) take(c, tile[2 * (c - index * TILE)], tile[2 * (c - index * TILE) + 1]);
      column = stop;
    }
    return whole;
  }

  // The sample of a lead in mV, undefined while it is on its way.
  sample(lead, place) {
    const tile = this.get(lead, 0, Math.floor(place / TILE));
    return tile?.[place % TILE];
  }
}
