"use strict";
// The filters of generation/sampling.py, computed from a place's candidates and the bins of the rest.

const FILTER_NAMES = { temperature: "temperature 0", top_k: "top-k", top_p: "top-p", min_p: "min-p" };

// What `options` make of a place: {candidates: [{id, final, removedBy}], removed: [{filter, n, probability}]}.
// A bin of the rest is many tokens with one score; a filter may keep some of them.
function distribution(place, options) {
  const entries = [
    ...place.candidates.map((c) => ({ id: c.id, score: c.adjusted, n: 1 })),
    ...place.rest.map(([score, n]) => ({ id: null, score, n })),
  ].sort((a, b) => b.score - a.score);
  const temperature = options.temperature || 1; // at 0 only the best stays; what went is told at 1
  const best = entries[0].score;
  let total = 0;
  for (const e of entries) {
    e.weight = Math.exp((e.score - best) / temperature);
    e.left = e.n;
    e.removedBy = null;
    total += e.weight * e.n;
  }
  const removed = [];
  const apply = (filter, keep) => {
    let n = 0;
    let weight = 0;
    for (const e of entries) {
      const left = Math.min(e.left, Math.max(0, keep(e)));
      n += e.left - left;
      weight += (e.left - left) * e.weight;
      if (left < e.left && !left) e.removedBy ??= filter;
      e.left = left;
    }
    if (n) removed.push({ filter, n, probability: weight / total });
  };

  if (options.temperature === 0) apply("temperature", (e) => (e === entries[0] ? 1 : 0));
  if (options.top_k) {
    let room = options.top_k;
    apply("top_k", (e) => { const kept = Math.min(e.left, room); room -= kept; return kept; });
  }
  if (options.top_p && options.top_p < 1) {
    let target = options.top_p * entries.reduce((sum, e) => sum + e.left * e.weight, 0);
    apply("top_p", (e) => {
      const kept = target <= 0 ? 0 : Math.min(e.left, Math.ceil(target / e.weight));
      target -= kept * e.weight;
      return kept;
    });
  }
  if (options.min_p) apply("min_p", (e) => (e.weight >= options.min_p ? e.left : 0));

  const kept = entries.reduce((sum, e) => sum + e.left * e.weight, 0);
  const candidates = new Map();
  for (const e of entries) {
    if (e.id !== null) candidates.set(e.id, { final: e.left ? e.weight / kept : 0, removedBy: e.removedBy });
  }
  return { candidates, removed };
}
