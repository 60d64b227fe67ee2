"use strict";
// The sliders, and the card of one token's candidates.

const SLIDERS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, start: 0.8, off: null, show: (v) => (v ? v.toFixed(2) : "0, greedy") },
  { name: "top_p", label: "Top-p", min: 0.05, max: 1, step: 0.01, start: 1, off: 1, show: (v) => v.toFixed(2) },
  { name: "top_k", label: "Top-k", min: 0, max: 100, step: 1, start: 0, off: 0, show: (v) => String(v) },
  { name: "min_p", label: "Min-p", min: 0, max: 0.5, step: 0.01, start: 0, off: 0, show: (v) => v.toFixed(2) },
];
const NUMBERS = [
  { name: "seed", label: "Seed", min: 0, max: 2 ** 53 - 1, start: 1 },
  { name: "max_tokens", label: "Most tokens", min: 1, max: 100000, start: 60 },
];
const FEW = 12;

class Inspector {
  // `onOptions` hears that an option has moved; `onSwap` a candidate to branch with, or null where there is no server.
  constructor({ onOptions, onSwap }) {
    this.onSwap = onSwap;
    this.place = null;
    this.many = false;
    this.inputs = {};
    for (const slider of SLIDERS) this.addSlider(slider);
    if (onSwap) for (const number of NUMBERS) this.addNumber(number);
    $("sliders").addEventListener("input", () => { this.write(); this.draw(); onOptions(); });
    $("candidates").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) onSwap(this.place.candidates.find((c) => c.id === Number(button.dataset.id)));
    });
    $("more").addEventListener("click", () => { this.many = !this.many; this.draw(); });
    this.write();
  }

  addSlider({ name, label, min, max, step, start }) {
    const input = element("input", { type: "range", id: name, min, max, step });
    input.value = start;
    this.inputs[name] = input;
    const shown = element("span", { className: "shown", id: `${name}-shown`, ariaHidden: "true" });
    $("sliders").append(element("div", { className: "slider" }, element("label", { htmlFor: name, textContent: label }), shown, input));
  }

  addNumber({ name, label, min, max, start }) {
    const input = element("input", { type: "number", id: name, min, max, step: 1, required: true, inputMode: "numeric" });
    input.value = start;
    this.inputs[name] = input;
    $("sliders").append(element("div", { className: "slider number" }, element("label", { htmlFor: name, textContent: label }), input));
  }

  write() {
    for (const { name, off, show } of SLIDERS) {
      const value = Number(this.inputs[name].value);
      const shown = value === off ? "off" : show(value);
      $(`${name}-shown`).textContent = shown;
      this.inputs[name].setAttribute("aria-valuetext", shown);
    }
  }

  // The options as a request says them: what is off is left out.
  options() {
    const result = {};
    for (const { name, off } of SLIDERS) {
      const value = Number(this.inputs[name].value);
      if (value !== off) result[name] = value;
    }
    for (const { name, min, max, start } of this.onSwap ? NUMBERS : []) {
      const value = Math.floor(Number(this.inputs[name].value));
      result[name] = this.inputs[name].value !== "" && value >= min && value <= max ? value : start;
    }
    return result;
  }

  set(options) {
    for (const [name, input] of Object.entries(this.inputs)) if (options[name] !== undefined && options[name] !== null) input.value = options[name];
    this.write();
  }

  say(words) {
    this.place = null;
    $("choice").hidden = true;
    $("choice-what").textContent = words;
  }

  // `token` is {text} of the one that came here, or null at the end of the text.
  show(place, token) {
    this.place = place;
    this.token = token;
    $("choice").hidden = false;
    $("edit-form").hidden = !this.onSwap;
    this.draw();
  }

  draw() {
    const { place } = this;
    if (!place) return;
    const { candidates, removed } = distribution(place, this.options());
    this.describe(candidates);
    $("removed").replaceChildren(...removed.map(({ filter, n, probability }) => element("li", {},
      element("b", { textContent: FILTER_NAMES[filter] }), ` removed ${whole(n)} of ${whole(place.n_tokens)} tokens, with ${percent(probability)} together`)));
    if (!removed.length) $("removed").replaceChildren(element("li", { textContent: `No filter removed any of the ${whole(place.n_tokens)} tokens.` }));
    const shown = place.candidates.filter((c, i) => this.many || i < FEW || c.id === place.token || c.id === place.drawn);
    const most = Math.max(...shown.map((c) => Math.max(c.probability, candidates.get(c.id).final)));
    $("candidates").replaceChildren(...shown.map((c) => this.row(c, candidates.get(c.id), most)));
    $("more").hidden = place.candidates.length <= FEW;
    $("more").textContent = this.many ? "Show fewer" : `Show ${place.candidates.length} candidates`;
  }

  describe(candidates) {
    const { place, token } = this;
    const came = place.candidates.find((c) => c.id === place.token);
    if (!token || !came) {
      $("choice-what").textContent = "What may come next.";
      return;
    }
    const now = candidates.get(came.id);
    const drawn = now.removedBy ? `removed by ${FILTER_NAMES[now.removedBy]} now` : `${percent(now.final)} as the sliders stand`;
    $("choice-what").textContent = `${quoted(token.text)}, token ${place.position + 1}, is number ${whole(came.rank)} of ${whole(place.n_tokens)}: ${percent(came.probability)} by the model, ${drawn}.`;
  }

  row(candidate, { final, removedBy }, most) {
    const bar = element("span", { className: "bar", ariaHidden: "true" }, element("i", { className: "own" }), element("i", { className: "now" }));
    bar.children[0].style.width = `${(100 * candidate.probability) / most}%`;
    bar.children[1].style.width = `${(100 * final) / most}%`;
    const notes = [];
    if (candidate.id === this.place.token) notes.push("here");
    if (candidate.id === this.place.drawn) notes.push("seed");
    if (removedBy) notes.push(FILTER_NAMES[removedBy]);
    const words = [visible(candidate.text), `${percent(candidate.probability)} by the model`, removedBy ? `removed by ${FILTER_NAMES[removedBy]}` : `${percent(final)} now`, ...notes.slice(0, removedBy ? -1 : undefined)];
    const parts = [
      element("span", { className: "word", textContent: visible(candidate.text) }),
      bar,
      element("span", { className: "number", textContent: percent(removedBy ? candidate.probability : final) }),
      element("span", { className: "why", textContent: notes.join(", ") }),
    ];
    const name = this.onSwap ? "button" : "div";
    const label = words.join(", ") + (this.onSwap ? ": branch with it" : "");
    const here = candidate.id === this.place.token ? " here" : "";
    const made = element(name, { className: `candidate${removedBy ? " gone" : ""}${here}`, data: { id: candidate.id }, aria: { label } }, ...parts);
    if (this.onSwap) made.type = "button";
    else made.setAttribute("role", "group");
    return element("li", {}, made);
  }
}
