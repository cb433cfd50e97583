"use strict";
// Tables that sort and filter, galleries that change their order, plots and the map of features.
// Names go through textContent only: nothing that comes from data becomes markup.

const holder = document.getElementById("data");
const payloads = holder ? JSON.parse(holder.textContent) : {};
const darkMode = matchMedia("(prefers-color-scheme: dark)");

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Plotly takes some tags in its texts for markup, and what is between two $ for a formula.
function escaped(text) {
  return text.replace(/[&<>$]/g, (letter) => `&#${letter.charCodeAt(0)};`);
}

// Tables.

for (const figure of document.querySelectorAll("figure.table")) {
  const body = figure.querySelector("tbody");
  const rows = [...body.rows];
  const heads = [...figure.querySelectorAll("th")];
  const value = (row, column, isNumber) => {
    const cell = row.cells[column];
    if (!isNumber) return cell.textContent.trim();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  heads.forEach((head, column) => {
    const isNumber = !head.classList.contains("text");
    head.querySelector("button").addEventListener("click", () => {
      const first = isNumber ? "descending" : "ascending";
      const second = isNumber ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? second : first;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const keyed = rows.map((row) => [value(row, column, isNumber), row]);
      keyed.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * (isNumber ? a - b : a.localeCompare(b, undefined, { numeric: true }));
      });
      body.append(...keyed.map(([, row]) => row));
    });
  });
  const filter = figure.querySelector("input");
  if (!filter) continue;
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const apply = () => {
    const wanted = filter.value.toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !texts.get(row).includes(wanted);
      shown += !row.hidden;
    }
    figure.querySelector("output").textContent = `${shown} of ${rows.length}`;
  };
  filter.addEventListener("input", apply);
  apply();
}

// Galleries.

for (const gallery of document.querySelectorAll("[data-gallery]")) {
  const { orders } = payloads[gallery.dataset.gallery];
  const list = gallery.querySelector(".cards");
  const cards = [...list.children];
  const show = (order) => list.replaceChildren(...order.map((number) => cards[number]));
  if (orders.length) show(orders[0]);
  gallery.querySelector("select")?.addEventListener("change", (event) => {
    show(orders[event.target.value]);
  });
}

// Plots.

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true };
  const merged = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 12 },
    margin: { l: 50, r: 15, t: 10, b: 40 },
    hovermode: "closest",
    legend: { orientation: "h", yref: "container", yanchor: "bottom", y: 0 },
    ...layout,
  };
  for (const name of Object.keys(merged).concat(["xaxis", "yaxis"])) {
    if (/^[xy]axis\d*$/.test(name)) merged[name] = { ...axis, ...merged[name] };
  }
  return merged;
}

const drawn = [];
function draw(canvas, data, layout) {
  const config = { responsive: true, displayModeBar: false, scrollZoom: false };
  Plotly.newPlot(canvas, data, themed(layout), config);
  drawn.push([canvas, layout]);
}
darkMode.addEventListener("change", () => {
  for (const [canvas, layout] of drawn) Plotly.relayout(canvas, themed(layout));
});

// The library takes most of the time that a page takes to open: the texts are shown before it.
let library;
function loadLibrary() {
  library ??= new Promise((resolve, reject) => {
    const script = element("script", undefined, { src: "plotly.min.js" });
    script.onload = resolve;
    script.onerror = () => reject(new Error("plotly.min.js is missing beside this page"));
    document.head.append(script);
  });
  return library;
}

// A plot is drawn when it comes near the screen, so that a page of many opens at once.
const watcher = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    loadLibrary().then(
      () => (target.dataset.map ? drawMap(target) : drawPlot(target)),
      (error) => target.append(element("p", `${error.message}: copy its whole folder.`, { class: "missing" })),
    );
  }
}, { rootMargin: "400px" });

function drawPlot(canvas) {
  const { data, layout, seeks } = payloads[canvas.dataset.plot];
  draw(canvas, data, layout);
  if (!seeks) return;
  canvas.on("plotly_click", ({ points }) => {
    const video = document.querySelector(`video[src="${seeks}"]`);
    video.preload = "auto"; // so that the moment is shown before the video is played
    video.currentTime = points[0].x;
    video.scrollIntoView({ block: "nearest" });
  });
}

function drawMap(figure) {
  const { points, names, groups, media, neighbours, axes } = payloads[figure.dataset.map];
  const canvas = figure.querySelector(".canvas");
  const choice = figure.querySelector("select");
  const tip = element("div", undefined, { class: "tip", hidden: "" });
  document.body.append(tip);
  const traces = [...new Set(groups)].sort().map((group) => {
    const members = names.map((_, number) => number).filter((n) => groups[n] === group);
    return {
      type: "scatter",
      mode: "markers",
      name: escaped(group),
      x: members.map((n) => points[n][0]),
      y: members.map((n) => points[n][1]),
      customdata: members,
      hoverinfo: "none",
      marker: { size: 9, opacity: 0.8, symbol: members.map((n) => (media[n] ? "circle" : "circle-open")) },
    };
  });
  const chosen = { mode: "markers", x: [], y: [], hoverinfo: "skip", showlegend: false,
    marker: { size: 18, symbol: "circle-open", color: "#e4572e", line: { width: 3 } } };
  draw(canvas, [...traces, chosen], {
    xaxis: { title: { text: axes[0] } },
    yaxis: { title: { text: axes[1] } },
    showlegend: traces.length > 1,
  });
  const picture = (number) => {
    const item = media[number];
    if (item && item.picture) return element("img", undefined, { src: item.picture, alt: "" });
    return element("span", item ? item.note : "no picture");
  };
  canvas.on("plotly_hover", ({ points: [point], event }) => {
    if (point.customdata === undefined) return;
    tip.replaceChildren(picture(point.customdata), element("span", names[point.customdata]));
    tip.style.left = `${Math.min(event.clientX + 15, innerWidth - 200)}px`;
    tip.style.top = `${event.clientY + 15}px`;
    tip.hidden = false;
  });
  canvas.on("plotly_unhover", () => { tip.hidden = true; });
  const choose = (number) => {
    choice.value = String(number);
    const shown = figure.querySelector(".picture");
    const item = media[number];
    if (item && item.video) {
      const video = element("video", undefined, {
        src: item.video, controls: "", loop: "", preload: "none", "aria-label": names[number],
      });
      video.muted = true;
      if (item.picture) video.poster = item.picture;
      shown.replaceChildren(video);
    } else {
      shown.replaceChildren(picture(number));
    }
    figure.querySelector(".near").replaceChildren(...neighbours[number].map(([other, close]) => {
      const line = element("li");
      const button = element("button", `${names[other]} (${close.toFixed(3)})`, { type: "button" });
      button.addEventListener("click", () => choose(other));
      if (media[other]) line.append(picture(other));
      line.append(button);
      return line;
    }));
    Plotly.restyle(canvas, { x: [[points[number][0]]], y: [[points[number][1]]] }, [traces.length]);
  };
  canvas.on("plotly_click", ({ points: [point] }) => {
    if (point.customdata !== undefined) choose(point.customdata);
  });
  choice.append(...names.map((name, number) => element("option", name, { value: number })));
  choice.addEventListener("change", () => choose(Number(choice.value)));
  if (names.length) choose(0);
}

for (const canvas of document.querySelectorAll("[data-plot]")) watcher.observe(canvas);
for (const figure of document.querySelectorAll("[data-map]")) watcher.observe(figure);
