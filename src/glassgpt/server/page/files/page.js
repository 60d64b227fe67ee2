"use strict";
// The page: a prompt becomes tokens, tokens become branches. With a "data" element it shows that text alone, from a file.

const file = $("data") && JSON.parse($("data").textContent);
const remembered = JSON.parse(sessionStorage.getItem("glassgpt-page") || "{}");
const training = new Training();
const attention = new AttentionView((weights) => {
  for (const pane of panes) if (pane !== active) pane.shadeBy(null);
  active.shadeBy(weights);
  if (weights && narrow.matches) active.root.scrollIntoView({ block: "nearest" });
  drawLegend($("legend"), weights ? "attention" : "probability");
});
const inspector = new Inspector({ onOptions: optionsMoved, onSwap: file ? null : swap });
const panes = [0, 1].map((number) => new Pane(number, { onChoose: choose, onSwitch: clearChoice }));
const contexts = new Map(); // of each model, in tokens
let active = panes[0];
const narrow = matchMedia("(max-width: 900px)");
let asking = null;
let lastAsked = null;
let moved = null;

const sideBySide = () => $("compare").getAttribute("aria-pressed") === "true";
const busy = () => panes.some((pane) => pane.abort);
const used = () => (sideBySide() ? panes : panes.slice(0, 1));

// ---- one token ------------------------------------------------------------------------------------------------------

async function choose(pane, i) {
  if (active !== pane) active.select(null);
  active = pane;
  pane.select(i);
  if (i === 0) {
    clearChoice(pane, "Nothing comes before the first token, so nothing led to it.");
    pane.select(0);
    $("status").textContent = $("choice-what").textContent;
    return;
  }
  await look(pane, i);
}

// Ask for the place of the token `i` and show it.
async function look(pane, i) {
  asking?.abort();
  asking = new AbortController();
  const token = pane.tokens[i] ?? null;
  try {
    const place = file ? file.places[i] : await server.json("inspect", request(pane, i), asking.signal);
    if (pane.selected !== i) return;
    lastAsked = { pane, i };
    inspector.show(place, token);
    attention.show(place.attention, pane.tokens.slice(0, i).map((t) => t.text));
    $("status").textContent = $("choice-what").textContent;
    if (narrow.matches) $("sampling").scrollIntoView();
  } catch (error) {
    if (error.name !== "AbortError") clearChoice(pane, error.message);
  }
}

function request(pane, i) {
  const { max_tokens, ...options } = inspector.options();
  const draw = pane.tokens[i]?.draw;
  if (draw === undefined || draw === null) delete options.seed;
  else options.n_drawn = draw;
  return { model: pane.model, prompt: pane.tokens.slice(0, i + 1).map((token) => token.id), position: i, ...options };
}

function clearChoice(pane, words = "Choose a token of the text to see what else could have come, and where the model looked.") {
  asking?.abort();
  clearTimeout(moved);
  lastAsked = null;
  pane.select(null);
  inspector.say(words);
  attention.show(null);
  pane.shadeBy(null);
  drawLegend($("legend"), "probability");
}

// The bars have moved already; which token the seed draws only the server knows.
function optionsMoved() {
  remember();
  clearTimeout(moved);
  if (!file && lastAsked) moved = setTimeout(async () => {
    const { pane, i } = lastAsked;
    try {
      const place = await server.json("inspect", request(pane, i));
      if (lastAsked?.pane === pane && lastAsked.i === i) inspector.show(place, pane.tokens[i]);
    } catch { /* what is shown stays */ }
  }, 250);
}

// ---- writing --------------------------------------------------------------------------------------------------------

async function tokenize(model, text) {
  const { tokens, token_strs: texts } = await server.json("tokenize", { model, prompt: text, return_token_strs: true });
  return tokens.map((id, i) => ({ id, text: texts[i], probability: null, from: "prompt", draw: null }));
}

// Work that changes a pane's text, alone there from the first moment on: what is at work there is stopped first.
async function alone(pane, work) {
  const mine = new AbortController();
  const before = pane.ended;
  let ended;
  pane.abort?.abort();
  pane.abort = mine;
  pane.ended = new Promise((resolve) => { ended = resolve; });
  complain("");
  drawButtons();
  try {
    await before;
    if (!mine.signal.aborted) await guarded(() => work(mine.signal));
  } finally {
    if (pane.abort === mine) pane.abort = null;
    drawButtons();
    ended();
  }
}

async function generate() {
  if (busy() || $("generate").disabled) return;
  clearChoice(active);
  active = panes[0];
  const text = $("prompt").value;
  await Promise.all(used().map((pane) => alone(pane, async (signal) => {
    pane.model = $(`model-${pane.number}`).value;
    const tokens = await tokenize(pane.model, text);
    pane.begin(tokens);
    await write(pane, signal);
  })));
}

async function swap(candidate) {
  const { pane, i } = lastAsked;
  await branch(pane, i, () => [{ id: candidate.id, text: candidate.text, probability: candidate.probability, from: "you", draw: null }]);
}

async function branch(pane, at, tokens) {
  await alone(pane, async (signal) => {
    const first = await tokens();
    if (signal.aborted) return; // something later has taken its place
    clearChoice(pane);
    pane.branch(at, ...first);
    $("edit").value = "";
    makeCurrent([...pane.text.children], pane.text.children[at]);
    pane.text.children[at].focus(); // what had it is gone
    await write(pane, signal);
  });
}

// Have the pane's model go on with its text.
async function write(pane, signal) {
  const { tokens } = pane;
  const options = inspector.options();
  const room = contexts.get(pane.model) - tokens.length;
  if (room < 1) throw new ServerError(400, `The text fills the context of ${pane.model}, ${whole(contexts.get(pane.model))} tokens.`);
  if (room < options.max_tokens) options.max_tokens = room;
  const body = { model: pane.model, prompt: tokens.length ? tokens.map((token) => token.id) : "", ...options, logprobs: 0, return_token_ids: true };
  pane.next.hidden = true;
  const began = performance.now();
  let first = null;
  let n = 0;
  const rate = () => (n > 1 ? `${whole(n)} tokens, ${speed((n - 1) / ((performance.now() - first) / 1000))}` : "");
  let end = "";
  try {
    for await (const { choices: [choice] } of server.stream("v1/completions", body, signal)) {
      if (!choice) continue;
      if (!pane.tokens.length) { // an empty prompt begins with the end of text
        for (const id of choice.prompt_token_ids) pane.append({ id, text: "", probability: null, from: "prompt", draw: null });
      }
      for (const token of tokensOf(choice)) {
        first ??= performance.now();
        pane.append({ ...token, from: "model", draw: n });
        n += 1;
      }
      pane.rate.textContent = rate() || `${Math.round(performance.now() - began)} ms to the first token`;
      if (choice.finish_reason) end = choice.finish_reason;
    }
  } catch (error) {
    end = error.name === "AbortError" ? "stopped" : "broken off";
    if (error.name !== "AbortError") throw error;
  } finally {
    pane.next.hidden = false;
    pane.current.note = [rate(), { stop: "end of text", length: "" }[end] ?? end].filter(Boolean).join(", ");
    pane.rate.textContent = pane.current.note;
    pane.drawTree();
    $("status").textContent = `${pane.model}: ${n} tokens written${end === "stopped" ? ", stopped" : ""}.`;
  }
}

function tokensOf(choice) {
  const { logprobs, token_ids: ids = [] } = choice;
  return ids.map((id, i) => ({
    id,
    text: logprobs.tokens[i].replace(/^bytes:.*/, "\ufffd"), // a part of a character
    probability: Math.exp(logprobs.token_logprobs[i]),
  }));
}

async function guarded(work) {
  try {
    await work();
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    if (error.status && error.status !== 401) complain(error.message);
  }
}

function complain(words) {
  $("wrong").textContent = words;
}

function drawButtons() {
  const [going, coming] = busy() ? ["generate", "stop"] : ["stop", "generate"];
  const hadFocus = document.activeElement === $(going);
  $("generate").hidden = busy();
  $("stop").hidden = !busy();
  $("continue").hidden = busy() || !active.tokens.length;
  $("panes").classList.toggle("two", sideBySide());
  panes[1].root.hidden = !sideBySide() || !panes[1].current;
  if (hadFocus) $(coming).focus();
}

// ---- beginning ------------------------------------------------------------------------------------------------------

function remember() {
  const models = [$("model-0").value, $("model-1").value];
  sessionStorage.setItem("glassgpt-page", JSON.stringify({ prompt: $("prompt").value, options: inspector.options(), models }));
}

async function listModels() {
  const { data } = await server.json("v1/models");
  const names = data.map((model) => model.id);
  for (const { id, max_model_len: most } of data) contexts.set(id, most);
  [0, 1].forEach((number) => {
    const before = $(`model-${number}`).value || remembered.models?.[number];
    $(`model-${number}`).replaceChildren(...names.map((name) => element("option", { value: name, textContent: name })));
    $(`model-${number}`).value = names.includes(before) ? before : names[Math.min(number, names.length - 1)];
  });
  $("compare").hidden = names.length < 2;
  $("generate").disabled = !names.length;
  await training.watch($("model-0").value);
}

function showView(name) {
  for (const tab of $("tabs").children) {
    const on = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !on;
  }
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").title = `Theme: ${theme}`;
  $("theme").setAttribute("aria-label", `Theme: ${theme}`);
  try {
    localStorage.setItem("glassgpt-theme", theme);
  } catch { /* a browser that keeps nothing for a file */ }
  attention.draw();
}

function setUpTheme() {
  let theme = "system";
  try {
    theme = localStorage.getItem("glassgpt-theme") || theme;
  } catch { /* as above */ }
  setTheme(theme);
  $("theme").addEventListener("click", () => {
    const all = ["system", "light", "dark"];
    setTheme(all[(all.indexOf(document.documentElement.dataset.theme) + 1) % all.length]);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => attention.draw());
}

function setUpServer() {
  server.onGone = () => { $("gone").hidden = false; };
  server.onBack = () => { $("gone").hidden = true; $("status").textContent = "The server is back."; guarded(listModels); };
  server.onKey = () => {
    $("key-wrong").textContent = server.key ? "The server does not accept this key." : "";
    $("key-form").hidden = false;
  };
  $("retry").addEventListener("click", () => server.look());
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    server.key = $("key").value;
    guarded(async () => {
      await listModels();
      sessionStorage.setItem("glassgpt-key", server.key);
      $("key-form").hidden = true;
    });
  });
}

function setUpWriting() {
  $("prompt").value = remembered.prompt ?? "";
  $("prompt").addEventListener("input", remember);
  inspector.set(remembered.options ?? {});
  $("prompt-form").addEventListener("submit", (event) => { event.preventDefault(); generate(); });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); generate(); }
  });
  const stop = () => panes.forEach((pane) => pane.abort?.abort());
  $("stop").addEventListener("click", stop);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && busy()) stop(); });
  $("continue").addEventListener("click", () => {
    if (!busy()) used().filter((pane) => pane.current).forEach((pane) => alone(pane, (signal) => write(pane, signal)));
  });
  $("compare").addEventListener("click", () => {
    $("compare").setAttribute("aria-pressed", String(!sideBySide()));
    $("second").hidden = !sideBySide();
    drawButtons();
  });
  $("edit-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const { pane, i } = lastAsked;
    const text = $("edit").value;
    if (!text) return;
    branch(pane, i, async () => {
      const tokens = await tokenize(pane.model, text);
      return tokens.map((token) => ({ ...token, from: "you" }));
    });
  });
  $("model-0").addEventListener("change", () => { remember(); training.watch($("model-0").value); });
  $("model-1").addEventListener("change", remember);
  rove($("tabs"), () => [...$("tabs").children].filter((tab) => !tab.hidden));
  for (const tab of $("tabs").children) tab.addEventListener("click", () => showView(tab.id.slice(4)));
}

function showFile() {
  document.title = `${file.model} · glassgpt`;
  document.body.classList.add("from-file");
  inspector.set({ temperature: 1, top_p: 1, top_k: 0, min_p: 0, ...file.sampling });
  const [pane] = panes;
  pane.model = file.model;
  pane.begin([...file.tokens.map((token) => ({ ...token, from: token.probability === null ? "prompt" : "model", draw: null }))]);
  choose(pane, file.tokens.length);
}

$("to-text").addEventListener("click", () => { active.root.scrollIntoView(); active.text.querySelector('[tabindex="0"]')?.focus(); });
$("panes").append(...panes.map((pane) => pane.root));
drawLegend($("legend"), "probability");
setUpTheme();
if (file) {
  showFile();
} else {
  setUpServer();
  setUpWriting();
  guarded(listModels);
}
