"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const pairs = [...document.querySelectorAll("article.pair")];
  const controls = { benchmark: $("benchmark"), show: $("show"), search: $("search"), item: $("item"), sample: $("sample") };
  const words = new Map();
  let shown = [];
  let current = null;

  const text = (pair) => {
    if (!words.has(pair)) words.set(pair, pair.textContent.toLowerCase());
    return words.get(pair);
  };
  const wanted = {
    all: () => true,
    differ: (pair) => pair.dataset.cell === "first" || pair.dataset.cell === "second",
    rules: (pair) => pair.dataset.rules === "1",
    prompts: (pair) => pair.dataset.prompts === "1",
  };
  const keep = (pair) => {
    const { benchmark, show, search } = controls;
    if (benchmark.value !== "" && pair.dataset.benchmark !== benchmark.value) return false;
    const test = wanted[show.value] ?? ((one) => one.dataset.cell === show.value);
    const sought = search.value.trim().toLowerCase();
    return test(pair) && (sought === "" || text(pair).includes(sought));
  };

  const option = (value, label) => {
    const made = document.createElement("option");
    made.value = value;
    made.textContent = label;
    return made;
  };

  const draw = () => {
    for (const pair of pairs) pair.hidden = pair !== current;
    const at = shown.indexOf(current);
    $("position").textContent = shown.length ? `${at + 1} of ${shown.length} (${pairs.length} in all)` : "none";
    $("nothing").hidden = shown.length > 0;
    $("previous").disabled = at <= 0;
    $("next").disabled = at < 0 || at === shown.length - 1;
    if (current === null) return;
    controls.item.value = String(pairs.indexOf(current));
    const samples = [...current.querySelectorAll(".answers")];
    const before = controls.sample.value || "0";
    controls.sample.replaceChildren(...samples.map((one) => option(one.dataset.sample, one.dataset.label)));
    controls.sample.value = samples.some((one) => one.dataset.sample === before) ? before : samples[0].dataset.sample;
    controls.sample.parentElement.hidden = samples.length < 2;
    for (const one of samples) one.hidden = one.dataset.sample !== controls.sample.value;
    const { benchmark, item } = current.dataset;
    const hash = `#${[benchmark, item, controls.sample.value].map(encodeURIComponent).join("/")}`;
    try {
      if (location.hash !== hash) history.replaceState(null, "", hash);
    } catch { /* a frame without an address of its own */ }
  };

  const choose = () => {
    shown = pairs.filter(keep);
    controls.item.replaceChildren(...shown.map((pair) => option(String(pairs.indexOf(pair)), pair.dataset.label)));
    if (!shown.includes(current)) current = shown[0] ?? null;
    draw();
  };

  const step = (by) => {
    const next = shown[shown.indexOf(current) + by];
    if (next) { current = next; draw(); }
  };

  const follow = () => {
    const [benchmark, item, sample] = location.hash.slice(1).split("/").map((part) => {
      try { return decodeURIComponent(part); } catch { return part; }
    });
    const found = pairs.find((pair) => pair.dataset.benchmark === benchmark && pair.dataset.item === item);
    if (!found) return false;
    controls.benchmark.value = "";
    controls.show.value = "all";
    controls.search.value = "";
    current = found;
    controls.sample.replaceChildren(option(sample ?? "0", ""));
    choose();
    return true;
  };

  for (const name of ["benchmark", "show"]) controls[name].addEventListener("change", choose);
  controls.search.addEventListener("input", choose);
  controls.item.addEventListener("change", () => { current = pairs[Number(controls.item.value)]; draw(); });
  controls.sample.addEventListener("change", draw);
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, textarea") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  addEventListener("hashchange", follow);

  $("controls").hidden = false;
  if (!follow()) {
    current = pairs.find((pair) => pair.dataset.chosen === "1") ?? null;
    choose();
  }
})();
