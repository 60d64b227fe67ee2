"use strict";
// The view of a run: its loss against the baselines of its own text, and what it writes; read again while it goes.

class Training {
  constructor() {
    this.model = "";
    this.timer = null;
  }

  // Look at the run of `model`, if it is one; the tab is there only then.
  async watch(model) {
    clearTimeout(this.timer);
    this.model = model;
    let run = null;
    try {
      ({ run } = await server.json(`runs/${model.split("/").map(encodeURIComponent).join("/")}`));
    } catch (error) {
      // what was last known stays; a server that comes back, or a key, begins this anew
      if (error.status > 401) this.timer = setTimeout(() => this.watch(model), 5000);
      return;
    }
    if (this.model !== model) return;
    $("tab-training").hidden = !run;
    if (!run) {
      showView("write");
      return;
    }
    this.draw(run);
    if (!run.finished) this.timer = setTimeout(() => this.watch(model), 5000);
  }

  draw(run) {
    const part = run.planned ? Math.min(100, Math.round((100 * run.steps) / run.planned)) : 100;
    $("run-title").textContent = this.model;
    $("run-status").textContent = run.status;
    $("run-progress").setAttribute("aria-valuenow", part);
    $("run-progress").firstElementChild.style.width = `${part}%`;
    $("run-facts").replaceChildren(...run.facts.map(([label, value, note]) => element("div", {},
      element("dt", { textContent: label }), element("dd", {}, element("b", { textContent: value }), element("small", { textContent: note })))));
    const svg = run.chart && new DOMParser().parseFromString(run.chart, "text/html").querySelector("svg");
    $("run-chart").replaceChildren(svg ? document.importNode(svg, true) : "Nothing yet.");
    const samples = run.samples.toReversed().flatMap(({ step, text }) => [
      element("dt", { textContent: `step ${whole(step)}` }), element("dd", { textContent: text })]);
    $("run-samples").replaceChildren(...(samples.length ? samples : [element("dd", { textContent: "No samples." })]));
  }
}
