"use strict";
// Small things that all of the page uses: elements, numbers in words, and how a token is written.

const $ = (id) => document.getElementById(id);

// An element with properties and children; `data` and `aria` are objects.
function element(tag, { data = {}, aria = {}, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  Object.assign(made.dataset, data);
  for (const [name, value] of Object.entries(aria)) made.setAttribute(`aria-${name}`, value);
  made.append(...children);
  return made;
}

function percent(p) {
  if (p === null || p === undefined) return "";
  if (p > 0 && p < 0.0001) return "< 0.01 %";
  if (p >= 0.9995) return "100 %";
  return `${(100 * p).toFixed(p >= 0.0995 ? 1 : 2)} %`;
}

const whole = (n) => n.toLocaleString("en");

const speed = (rate) => `${rate < 100 ? rate.toFixed(1) : whole(Math.round(rate))} tokens/s`;

// A token's text where it stands alone: what cannot be seen gets a sign.
function visible(text) {
  if (text === "") return "∅";
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "␍").replace(/^ +| +$/g, (s) => "␣".repeat(s.length));
}

const quoted = (text) => `“${visible(text)}”`;

// The shade of a probability: the less probable, the deeper. Lightness alone tells them apart.
const SHADES = [[0.5, "50 % and more"], [0.2, "20 to 50 %"], [0.05, "5 to 20 %"], [0.01, "1 to 5 %"], [0, "below 1 %"]];
const shade = (p) => SHADES.findIndex(([least]) => p >= least);

function drawLegend(place, shading) {
  if (shading === "attention") {
    place.replaceChildren("Shaded by attention: ", element("i", { className: "swatch ramp", ariaHidden: "true" }), "none to most");
    return;
  }
  const swatches = SHADES.map(([, words], number) => element("span", { className: "swatches" }, element("i", { className: `swatch p${number}`, ariaHidden: "true" }), words));
  place.replaceChildren("How probable each token was: ", ...swatches);
}

// Arrow keys go through `items()` of a group of which one alone is in the tab order.
function rove(group, items, columns = () => 1) {
  group.addEventListener("keydown", (event) => {
    const all = items();
    const at = all.indexOf(document.activeElement);
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns(), Home: -at, End: all.length - 1 - at };
    if (at < 0 || !(event.key in steps)) return;
    event.preventDefault();
    const next = all[Math.min(all.length - 1, Math.max(0, at + steps[event.key]))];
    makeCurrent(all, next);
    next.focus();
  });
}

function makeCurrent(all, current) {
  for (const each of all) each.tabIndex = each === current ? 0 : -1;
}
