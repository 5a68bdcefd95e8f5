// One chart: its lines or areas, the states of the host behind them, its legend, its values as a table.

/** The colours of Okabe and Ito, which differ in lightness too; what is told apart by them has a dash or a hatch as well.
 * The first, blue, is the style sheet's: it is too dark for a dark ground. */
const COLOURS = ["", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c8c", "#f0e442"];
const DASHES = [[], [7, 3], [2, 2], [9, 3, 2, 3], [4, 4], [12, 4], [2, 5], [7, 2, 2, 2, 2, 2]];
/** Directions of hatching: none, rising, falling, lying, standing, crossed. */
const HATCHES = [[], [[0, 8, 8, 0]], [[0, 0, 8, 8]], [[0, 4, 8, 4]], [[4, 0, 4, 8]], [[0, 8, 8, 0], [0, 0, 8, 8]]];
/** How dark the ground is in each state of the host. */
const SHORTAGE = { clear: 0.05, soft: 0.12, hard: 0.22, low: 0.34 };
const HEIGHT = 190;
/** How high the strip with the names of states is. */
const STRIP = 13;

/** Makes an element. Texts are always texts: names are written by others. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** A colour of the style sheet. */
function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** A surface for areas: a colour, hatched with the ground's. */
function hatched(colour, hatch) {
  if (!HATCHES[hatch].length) return colour;
  const scale = devicePixelRatio;
  const tile = make("canvas", { width: 8 * scale, height: 8 * scale });
  const pen = tile.getContext("2d");
  pen.scale(scale, scale);
  pen.fillStyle = colour;
  pen.fillRect(0, 0, 8, 8);
  pen.strokeStyle = ink("--ground");
  pen.lineWidth = 1.2;
  for (const [x, y, toX, toY] of HATCHES[hatch]) {
    pen.moveTo(x, y);
    pen.lineTo(toX, toY);
  }
  pen.stroke();
  return pen.createPattern(tile, "repeat");
}

class Chart {
  /** `host` is the run whose states and marks stand behind the chart, or null. `page` keeps the moment for all charts. */
  constructor(panel, at, host, page) {
    this.page = page;
    this.host = host;
    this.hidden = new Set();
    this.plot = make("div", { class: "plot", tabindex: 0, role: "slider", "aria-label": panel.title });
    this.legend = make("ul", { class: "legend" });
    this.table = make("table");
    this.values = make("details", { class: "values" }, make("summary", {}, "Values"), make("div", { class: "wide" }, this.table));
    this.figure = make("figure", { class: "chart" }, make("figcaption", {}, panel.title), this.plot, this.legend, this.values);
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.values.addEventListener("toggle", () => this.fillTable());
    this.update(panel, at);
  }

  /** Shows other values. The canvas is drawn when somebody can see it. */
  update(panel, at) {
    const shape = panel.series.map(({ label }) => label).join("\n");
    const again = this.u && shape !== this.shape;
    if (shape !== this.shape) {
      this.drop();
      this.hidden.clear();
    }
    this.shape = shape;
    this.panel = panel;
    this.at = at;
    this.figure.dataset.points = panel.series.reduce((n, { values }) => n + values.filter((v) => v !== null).length, 0);
    this.legend.childElementCount || this.fillLegend();
    if (this.u) this.u.setData(this.stacked());
    else if (again) this.draw();
    if (this.values.open) this.fillTable();
    this.show();
  }

  drop() {
    this.u?.destroy();
    this.u = null;
    this.legend.replaceChildren();
  }

  /** Draws, at the width that there is. */
  draw() {
    const width = this.plot.clientWidth;
    if (!width) return;
    if (!this.u) this.u = new uPlot(this.options(width), this.stacked(), this.plot);
    else if (this.u.width !== width) this.u.setSize({ width, height: HEIGHT });
    this.show();
  }

  /** Draws anew in the colours that hold now. */
  repaint() {
    this.drop();
    this.fillLegend();
    this.draw();
  }

  get isStacked() {
    return this.panel.form === "stacked";
  }

  /** The columns of the library: of stacked areas the sums from the bottom on, the highest first, so that each covers the
   * foot of those before it; and of lines with a spread its ends too. */
  stacked() {
    const shown = this.panel.series.map(({ values }, i) => (this.hidden.has(i) ? values.map(() => null) : values));
    if (this.panel.form === "magnitudes") return [this.at, ...shown.map((values) => values.map((value) => value || null))];
    if (!this.isStacked) {
      const ends = this.panel.series.flatMap(({ least, most }) => (least ? [least, most] : []));
      return [this.at, ...shown, ...ends];
    }
    const sums = [];
    let below = this.at.map(() => 0);
    for (const column of shown) {
      below = column.map((value, i) => below[i] + (value ?? 0));
      sums.unshift(below.map((sum, i) => (shown.some((values) => values[i] !== null) ? sum : null)));
    }
    return [this.at, ...sums];
  }

  series() {
    const { series } = this.panel;
    if (this.isStacked) {
      return series.map((_, i) => ({ width: 0, points: { show: false }, fill: hatched(this.colour(i), this.hatch(i)) })).reverse();
    }
    const lines = series.map((_, i) => ({ stroke: this.colour(i), dash: this.dash(i), width: 1.8, points: { show: (u) => u.data[0].length < 3 } }));
    const ends = series.flatMap(({ least }) => (least ? [{}, {}] : []));
    return [...lines, ...ends.map(() => ({ stroke: "transparent", width: 0, points: { show: false } }))];
  }

  /** The spread of each line, as the area between its ends. */
  bands() {
    let next = this.panel.series.length + 1;
    return this.panel.series.flatMap(({ least }, i) => {
      if (!least) return [];
      next += 2;
      return [{ series: [next - 1, next - 2], fill: this.colour(i) + "38" }];
    });
  }

  colour(i) { return i % COLOURS.length ? COLOURS[i % COLOURS.length] : ink("--blue"); }
  dash(i) { return DASHES[(i + Math.floor(i / COLOURS.length)) % DASHES.length]; }
  hatch(i) { return (i + Math.floor(i / COLOURS.length)) % HATCHES.length; }

  options(width) {
    const axis = { stroke: ink("--soft"), font: "11px system-ui, sans-serif", grid: { stroke: ink("--line"), width: 1 }, ticks: { stroke: ink("--line"), width: 1 } };
    const { unit, form } = this.panel;
    const magnitudes = form === "magnitudes";
    const y = { ...axis, size: 68, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : onAxis(tick, unit))) };
    if (unit.startsWith("bytes")) y.incrs = BYTE_STEPS;
    // The steps between powers of ten are too many lines.
    if (magnitudes) y.grid = { ...axis.grid, filter: (_, ticks) => ticks.map((tick) => (Number.isInteger(Math.log10(tick)) ? tick : null)) };
    return {
      width, height: HEIGHT, legend: { show: false }, padding: [this.host ? STRIP + 2 : 6, 22, 0, 0],
      cursor: { y: false, drag: { x: true, y: false, setScale: false }, points: { show: !this.isStacked }, focus: { prox: -1 } },
      scales: { x: { time: false, range: (_, min, max) => this.page.range ?? [min, max > min ? max : min + 1] },
        y: magnitudes ? { distr: 3 } : { range: (_, min, max) => [0, max > 0 ? max * 1.05 : 1] } },
      axes: [{ ...axis, size: 30, values: (_, ticks) => ticks.map(clock) }, y],
      series: [{}, ...this.series()], bands: this.bands(),
      hooks: {
        drawClear: [(u) => this.ground(u)], draw: [(u) => this.remarks(u)],
        ready: [(u) => this.follow(u.over)],
        setSelect: [(u) => {
          if (u.select.width < 4) return;
          const [from, to] = [u.select.left, u.select.left + u.select.width].map((at) => u.posToVal(at, "x"));
          u.setSelect({ width: 0, left: 0, top: 0, height: 0 }, false);
          this.page.zoom([from, to]);
        }],
      },
    };
  }

  /** The times in which the host was in one state: `{word, from, to}`, in pixels of the canvas, within the plot. */
  states(u) {
    const column = this.host?.host.get(STATE);
    if (!column) return [];
    const { words } = data.series[STATE];
    const { left, width } = u.bbox;
    const inside = (moment) => Math.min(left + width, Math.max(left, u.valToPos(moment, "x", true)));
    const { at } = this.host;
    const found = [];
    for (let i = 0; i < at.length;) {
      let end = i + 1;
      while (end < at.length && column[end] === column[i]) end += 1;
      const [from, to] = [inside(at[i]), inside(at[Math.min(end, at.length - 1)])];
      if (column[i] !== null && to > from) found.push({ word: words[column[i]], from, to });
      i = end;
    }
    return found;
  }

  /** The states of the host as grounds, the darker the shorter of memory. */
  ground(u) {
    const { ctx: pen, bbox: { top, height } } = u;
    pen.save();
    pen.fillStyle = ink("--ink");
    for (const { word, from, to } of this.states(u)) {
      pen.globalAlpha = SHORTAGE[word] ?? 0;
      pen.fillRect(from, top, to - from, height);
    }
    pen.restore();
  }

  /** What areas must not cover: the states once more, as a strip with their names above the plot, and what was changed. */
  remarks(u) {
    const { ctx: pen, bbox: { left, top, width, height } } = u;
    const scale = devicePixelRatio;
    pen.save();
    pen.font = `${10 * scale}px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    pen.textAlign = "left";
    pen.fillStyle = pen.strokeStyle = ink("--ink");
    for (const { word, from, to } of this.states(u)) {
      pen.globalAlpha = SHORTAGE[word] ?? 0;
      pen.fillRect(from, top - STRIP * scale, to - from, STRIP * scale);
      pen.globalAlpha = 1;
      if (pen.measureText(word).width + 6 * scale < to - from) pen.fillText(word, from + 3 * scale, top - STRIP * scale / 2);
    }
    pen.setLineDash([3 * scale, 3 * scale]);
    pen.lineWidth = scale;
    this.host?.marks.forEach(({ at }, i) => {
      const x = u.valToPos(at, "x", true);
      if (x < left || x > left + width) return;
      const words = String(i + 1);
      pen.beginPath();
      pen.moveTo(x, top);
      pen.lineTo(x, top + height);
      pen.stroke();
      // On a ground of its own, whatever is behind it.
      const size = pen.measureText(words).width + 5 * scale;
      pen.fillStyle = ink("--ground");
      pen.fillRect(x - size / 2, top + 2 * scale, size, 13 * scale);
      pen.fillStyle = ink("--ink");
      pen.fillText(words, x - size / 2 + 2.5 * scale, top + 9 * scale);
    });
    pen.restore();
  }

  fillLegend() {
    this.legend.replaceChildren(...this.panel.series.map(({ label, name }, i) => {
      const swatch = make("canvas", { width: 22 * devicePixelRatio, height: 12 * devicePixelRatio, "aria-hidden": "true" });
      const pen = swatch.getContext("2d");
      if (this.isStacked) {
        pen.fillStyle = hatched(this.colour(i), this.hatch(i));
        pen.fillRect(0, 0, swatch.width, swatch.height);
      } else {
        pen.scale(devicePixelRatio, devicePixelRatio);
        pen.strokeStyle = this.colour(i);
        pen.lineWidth = 2.4;
        pen.setLineDash(this.dash(i));
        pen.moveTo(0, 6);
        pen.lineTo(22, 6);
        pen.stroke();
      }
      const button = make("button", { type: "button", "aria-pressed": String(!this.hidden.has(i)), title: name && data.series[name].help },
        swatch, make("span", {}, label), make("b", {}));
      button.addEventListener("click", () => this.toggle(i, button));
      return make("li", {}, button);
    }));
  }

  toggle(i, button) {
    const hide = !this.hidden.delete(i);
    if (hide) this.hidden.add(i);
    button.setAttribute("aria-pressed", String(!hide));
    this.u?.setData(this.stacked());
  }

  /** Shows the values of the moment that all charts show. */
  show() {
    const i = this.index();
    const values = this.panel.series.map(({ label, values }) => [label, text(values[i], this.panel.unit)]);
    this.legend.querySelectorAll("b").forEach((value, n) => {
      if (value.textContent !== values[n][1]) value.textContent = values[n][1];
    });
    const moment = this.at[i] ?? 0;
    this.plot.setAttribute("aria-valuemin", this.at[0] ?? 0);
    this.plot.setAttribute("aria-valuemax", this.at[this.at.length - 1] ?? 0);
    this.plot.setAttribute("aria-valuenow", moment);
    this.plot.setAttribute("aria-valuetext", `${clock(moment)}: ${values.map((pair) => pair.join(" ")).join(", ")}`);
    const left = this.page.moment === null ? -10 : this.u?.valToPos(moment, "x");
    if (this.u && Math.abs(this.u.cursor.left - left) > 0.5) this.u.setCursor({ left, top: left < 0 ? -10 : 0 }, false);
  }

  /** The sample at the moment that all charts show. */
  index() {
    return Math.max(0, Run.prototype.index.call(this, this.page.moment));
  }

  /** Shows the moment at the pointer. A finger that is lifted leaves it there. */
  follow(over) {
    const move = ({ clientX }) => this.page.move(this.at[this.u.posToIdx(clientX - over.getBoundingClientRect().left)] ?? null);
    over.addEventListener("pointerdown", move);
    over.addEventListener("pointermove", move);
    over.addEventListener("pointerleave", ({ pointerType }) => pointerType === "mouse" && this.page.move(null));
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
    if (step !== undefined && this.at.length) {
      const i = Math.min(this.at.length - 1, Math.max(0, this.index() + step));
      this.page.move(this.at[i]);
    } else if (event.key === "Escape") {
      this.page.move(null);
      this.page.zoom(null);
    } else if (event.key === "+" || event.key === "-") {
      const { min, max } = this.u.scales.x;
      const middle = this.at[this.index()];
      const half = (max - min) * (event.key === "+" ? 0.25 : 1);
      const from = Math.max(this.at[0], middle - half);
      const to = Math.min(this.at[this.at.length - 1], middle + half);
      this.page.zoom(from === this.at[0] && to === this.at[this.at.length - 1] ? null : [from, to]);
    } else return;
    event.preventDefault();
  }

  fillTable() {
    if (!this.values.open) return;
    const { series, unit } = this.panel;
    const head = make("tr", {}, ...["Time", ...series.map(({ label }) => label)].map((label) => make("th", { scope: "col" }, label)));
    const rows = this.at.map((at, i) => make("tr", {}, make("th", { scope: "row" }, clock(at)),
      ...series.map(({ values }) => make("td", { "data-value": values[i] ?? "" }, text(values[i], unit)))));
    this.table.replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
  }
}
