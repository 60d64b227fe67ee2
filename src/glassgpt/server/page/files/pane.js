"use strict";
// One model's text: its tokens as buttons, and its branches.

// A token: {id, text, probability, from: "prompt" | "model" | "you", draw}, where `draw` counts the draws of its request.
// A branch: {id, parent, at, tokens, note}, which leaves its parent at the token `at`.
class Pane {
  constructor(number, { onChoose, onSwitch }) {
    this.number = number;
    this.model = "";
    this.branches = [];
    this.current = null;
    this.selected = null;
    this.weights = null;
    this.abort = null;
    this.onChoose = onChoose;
    this.text = element("div", { className: "text", role: "group", aria: { label: "Tokens" } });
    this.next = element("span", { className: "token next", role: "button", tabIndex: -1, textContent: "+", title: "What comes next", aria: { label: "what comes next", pressed: "false" } });
    this.rate = element("span", { className: "rate" });
    this.name = element("h2");
    this.tree = element("ul", { className: "branches", aria: { label: "Branches" } });
    this.root = element("section", { className: "card pane", hidden: true, data: { pane: number } },
      element("div", { className: "pane-head" }, this.name, this.rate), this.text, this.tree);
    this.text.addEventListener("click", (event) => this.chooseAt(event.target.closest(".token")));
    this.text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      this.chooseAt(event.target.closest(".token"));
    });
    rove(this.text, () => [...this.text.children].filter((token) => !token.hidden));
    this.tree.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button || this.abort) return;
      this.show(this.branches[Number(button.dataset.branch)]);
      onSwitch(this);
      this.tree.querySelector("[aria-current]")?.focus();
    });
  }

  get tokens() {
    return this.current ? this.current.tokens : [];
  }

  // Begin anew with these tokens, without branches; or leave the current branch at the token `at`.
  begin(tokens) {
    this.branches = [];
    this.add(tokens, null, 0);
  }

  branch(at, ...tokens) {
    this.add([...this.tokens.slice(0, at), ...tokens], this.current, at);
  }

  add(tokens, parent, at) {
    const branch = { id: this.branches.length, parent, at, tokens, note: "" };
    this.branches.push(branch);
    this.show(branch);
  }

  show(branch) {
    this.current = branch;
    this.selected = null;
    this.weights = null;
    this.root.hidden = false;
    this.name.textContent = this.model;
    this.text.replaceChildren(...branch.tokens.map((token, i) => this.drawn(token, i)), this.next);
    this.select(null);
    this.rate.textContent = branch.note;
    this.drawTree();
  }

  append(token) {
    this.current.tokens.push(token);
    this.next.before(this.drawn(token, this.tokens.length - 1));
  }

  drawn(token, i) {
    const probable = token.probability === null ? "" : `, ${percent(token.probability)}`;
    const origin = { prompt: "prompt", you: "yours" }[token.from];
    const made = element("span", {
      className: `token from-${token.from}`, role: "button", tabIndex: i ? -1 : 0, textContent: token.text.replaceAll("\n", "↵\n") || "·",
      aria: { label: `${visible(token.text)}${probable}${origin ? `, ${origin}` : ""}`, pressed: "false" },
    });
    if (token.probability !== null) made.classList.add(`p${shade(token.probability)}`);
    return made;
  }

  chooseAt(button) {
    if (button) this.onChoose(this, [...this.text.children].indexOf(button));
  }

  select(i) {
    const buttons = [...this.text.children];
    this.text.querySelector('[aria-pressed="true"]')?.setAttribute("aria-pressed", "false");
    this.selected = i;
    if (i === null || !buttons[i]) return;
    buttons[i].setAttribute("aria-pressed", "true");
    makeCurrent(buttons, buttons[i]);
  }

  // Shade the tokens by `weights`, one for each of the first; null: by their probability again.
  shadeBy(weights) {
    this.weights = weights;
    this.text.classList.toggle("attended", weights !== null);
    const most = weights ? Math.max(...weights) : 1;
    [...this.text.children].forEach((token, i) => {
      const weight = weights && i < weights.length ? weights[i] : 0;
      token.style.setProperty("--weight", (weight / most).toFixed(3));
      token.title = weights && i < weights.length ? percent(weight) : "";
    });
  }

  // The branches as an indented list; there is nothing to choose from while there is one.
  drawTree() {
    this.tree.hidden = this.branches.length < 2;
    const depth = (branch) => (branch.parent ? 1 + depth(branch.parent) : 0);
    const below = (parent) => this.branches.filter((b) => b.parent === parent).flatMap((b) => [b, ...below(b)]);
    this.tree.replaceChildren(...below(null).map((branch) => {
      const from = branch.parent ? branch.tokens.slice(branch.at) : branch.tokens;
      const words = from.slice(0, 16).map((token) => token.text).join("").trim().slice(0, 60);
      const where = branch.parent ? `from token ${branch.at + 1}: ` : "first: ";
      const button = element("button", { type: "button", data: { branch: branch.id } }, element("span", { className: "soft" }, where), words || "…");
      if (branch === this.current) button.setAttribute("aria-current", "true");
      const item = element("li", {}, button);
      item.style.setProperty("--depth", Math.min(depth(branch), 6));
      return item;
    }));
  }
}
