"use strict";
// The attention card: a picture for each layer and head, of which one is drawn over the text.

class AttentionView {
  // `onPick` hears the weights that the text is to be shaded by, or null.
  constructor(onPick) {
    this.onPick = onPick;
    this.weights = null;
    this.picked = null; // "mean", or [layer, head]; stays from token to token
    rove($("heads"), () => [...$("heads").querySelectorAll("button")], () => this.weights[0].length);
    $("heads").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) this.pick([Number(button.dataset.layer), Number(button.dataset.head)]);
    });
    $("heads").addEventListener("focusin", (event) => {
      if (event.target.dataset.head) this.describe([Number(event.target.dataset.layer), Number(event.target.dataset.head)]);
    });
    $("mean").addEventListener("click", () => this.pick("mean"));
    $("by-probability").addEventListener("click", () => this.pick(null));
  }

  // `weights` is layers of heads of one number for each token of `texts`; null: there are none.
  show(weights, texts) {
    $("attention").hidden = !weights;
    this.weights = weights;
    this.texts = texts;
    if (!weights) return;
    const heads = $("heads");
    heads.style.setProperty("--columns", weights[0].length);
    const buttons = weights.flatMap((row, layer) => row.map((_, head) => element("button", {
      type: "button", role: "radio", tabIndex: -1, data: { layer, head },
      aria: { checked: "false", label: `layer ${layer}, head ${head}: ${this.strongest([layer, head], 1)}` },
    }, element("canvas", { width: 96, height: 64, ariaHidden: "true" }))));
    heads.replaceChildren(...buttons);
    this.draw();
    const known = Array.isArray(this.picked) ? weights[this.picked[0]]?.[this.picked[1]] : true;
    this.pick(known ? this.picked : null);
  }

  of(which) {
    if (which !== "mean") return this.weights[which[0]][which[1]];
    const all = this.weights.flat();
    return this.texts.map((_, i) => all.reduce((sum, row) => sum + row[i], 0) / all.length);
  }

  strongest(which, n) {
    const row = this.of(which);
    const order = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, n);
    return order.map((i) => `${quoted(this.texts[i])} ${percent(row[i])}`).join(", ");
  }

  pick(which) {
    this.picked = which;
    const buttons = [...$("heads").querySelectorAll("button")];
    let current = buttons[0];
    for (const button of buttons) {
      const on = Array.isArray(which) && Number(button.dataset.layer) === which[0] && Number(button.dataset.head) === which[1];
      button.setAttribute("aria-checked", String(on));
      if (on) current = button;
    }
    makeCurrent(buttons, current);
    $("mean").setAttribute("aria-pressed", String(which === "mean"));
    $("by-probability").hidden = which === null;
    this.describe(which);
    this.onPick(which === null ? null : this.of(which));
  }

  describe(which) {
    const name = which === "mean" ? "All heads together" : which && `Layer ${which[0]}, head ${which[1]}`;
    $("looked").textContent = which ? `${name} looked at ${this.strongest(which, 4)}.` : "Choose a head to see it over the text.";
  }

  // Bars from left to right, one for each token, or for the largest of several; the square root shows small ones.
  draw() {
    if (!this.weights) return;
    const colour = getComputedStyle(document.documentElement).getPropertyValue("--accent-drawn").trim() || "#2f6db5";
    for (const button of $("heads").querySelectorAll("button")) {
      const canvas = button.firstChild;
      const row = this.weights[button.dataset.layer][button.dataset.head];
      const bars = Math.min(row.length, 24);
      const context = canvas.getContext("2d");
      context.clearRect(0, 0, canvas.width, canvas.height);
      context.fillStyle = colour;
      for (let bar = 0; bar < bars; bar++) {
        const part = row.slice(Math.floor((bar * row.length) / bars), Math.floor(((bar + 1) * row.length) / bars));
        const height = Math.sqrt(Math.max(...part)) * canvas.height;
        const width = canvas.width / bars;
        context.fillRect(bar * width, canvas.height - height, Math.max(1, width - 1), height);
      }
    }
  }
}
