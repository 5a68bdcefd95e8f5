// The document: what stands where, the moment that all charts show, the report and the live page.

const data = JSON.parse(document.getElementById("data").textContent);
const STATE = "memvisor_host_state";
/** Which a VM has as long as it is there. */
const SIZE = "memvisor_vm_configured_bytes";
/** Moments that the live page keeps: ten minutes. */
const KEPT = 600;

/** What all charts have in common: the moment that they show and the part of time. */
class Page {
  constructor(root) {
    this.root = root;
    this.moment = null;
    this.range = null;
    this.charts = new Set();
    this.numbers = new Set();
    this.queued = false;
    const sight = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) this.charts.forEach((chart) => chart.figure === target && chart.draw());
      }
    }, { rootMargin: "400px" });
    this.sight = sight;
    new ResizeObserver(() => this.drawn((chart) => chart.draw())).observe(root);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.drawn((chart) => chart.repaint()));
    addEventListener("beforeprint", () => this.print(true));
    addEventListener("afterprint", () => this.print(false));
  }

  /** Does something with the charts that have been drawn. */
  drawn(act) {
    for (const chart of this.charts) if (chart.u) act(chart);
  }

  chart(panel, at, host) {
    const chart = new Chart(panel, at, host, this);
    this.charts.add(chart);
    this.sight.observe(chart.figure);
    return chart;
  }

  /** Forgets the charts and numbers within an element. */
  forget(element) {
    for (const numbers of this.numbers) if (element.contains(numbers.element)) this.numbers.delete(numbers);
    for (const chart of this.charts) {
      if (!element.contains(chart.figure)) continue;
      this.sight.unobserve(chart.figure);
      chart.drop();
      this.charts.delete(chart);
    }
  }

  /** Has all charts show a moment; null stands for the last. */
  move(moment) {
    if (moment === this.moment) return;
    this.moment = moment;
    this.refresh();
  }

  /** Shows the moment, once for all that happens until the browser paints. */
  refresh() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => {
      this.queued = false;
      this.charts.forEach((chart) => chart.show());
      this.numbers.forEach((numbers) => numbers.show());
    });
  }

  /** Has all charts show a part of the time, or all of it. */
  zoom(range) {
    this.range = range;
    this.drawn((chart) => chart.u.setData(chart.stacked()));
  }

  /** Paper is wide enough, light, and shows all. */
  print(begins) {
    document.documentElement.classList.toggle("printing", begins);
    if (begins) {
      this.closed = [...this.root.querySelectorAll("details.vm:not([open])")];
      this.closed.forEach((details) => { details.open = true; });
    } else {
      this.closed?.forEach((details) => { details.open = false; });
    }
    for (const chart of this.charts) {
      if (begins || chart.u) {
        chart.draw();
        chart.repaint();
      }
    }
  }
}

/** A table of texts. A cell may be an element. */
function table(caption, head, rows) {
  return make("div", { class: "wide" }, make("table", {}, make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ...head.map((cell) => make("th", { scope: "col" }, cell)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {},
      ...row.map((cell, i) => make(i ? "td" : "th", i ? {} : { scope: "row" }, cell)))))));
}

/** The columns of the table of VMs: those of the command line, as far as they move. */
const COLUMNS = [
  [SIZE, "size"], ["memvisor_vm_consumed_bytes", "consumed"],
  ["memvisor_vm_target_bytes", "target"], ["memvisor_vm_active_bytes", "active"],
  ['memvisor_vm_memory_bytes{home="shared"}', "shared"], ['memvisor_vm_memory_bytes{home="compressed"}', "compressed"],
  ['memvisor_vm_memory_bytes{home="swapped"}', "swapped"], ["memvisor_vm_balloon_bytes", "balloon"],
  ['memvisor_vm_stalled_ratio{window="latency"}', "stalled"],
];
const OF_HOST = [
  [STATE, "state"], ["memvisor_host_budget_bytes", "budget"], ["memvisor_host_used_bytes", "used"],
  ["memvisor_host_free_bytes", "free"], ["memvisor_host_shared_saved_bytes", "saved by sharing"],
];

/** The host and its VMs at the moment that the charts show. */
class Numbers {
  constructor(run, page) {
    this.run = run;
    this.page = page;
    this.host = make("dl", { class: "numbers" });
    this.at = make("caption");
    this.body = make("tbody");
    const head = make("tr", {}, ...["VM", ...COLUMNS.map(([, label]) => label)].map((label) => make("th", { scope: "col" }, label)));
    this.element = make("div", {}, this.host, make("div", { class: "wide" },
      make("table", { class: "vms" }, this.at, make("thead", {}, head), this.body)));
    page.numbers.add(this);
    this.show();
  }

  show() {
    const i = this.run.index(this.page.moment);
    const cell = (columns, name, tag, attributes = {}) => {
      const value = columns.get(name)?.[i] ?? null;
      const { unit, words } = data.series[name];
      const shown = words && value !== null ? words[value] : text(value, unit);
      return make(tag, { ...attributes, "data-series": name, "data-value": value ?? "" }, shown);
    };
    const when = clock(this.run.at[i] ?? 0);
    this.at.textContent = this.page.moment === null ? `At the end, at ${when}` : `At ${when}`;
    if (!data.report) this.at.textContent = this.page.moment === null ? "Now" : `When the host was up for ${when}`;
    this.host.replaceChildren(...OF_HOST.map(([name, label]) =>
      make("div", {}, make("dt", {}, label), cell(this.run.host, name, "dd"))));
    const rows = [...this.run.vms].filter(([, columns]) => (columns.get(SIZE)?.[i] ?? null) !== null);
    this.body.replaceChildren(...rows.map(([vm, columns]) =>
      make("tr", { "data-vm": vm }, make("th", { scope: "row" }, vm), ...COLUMNS.map(([name]) => cell(columns, name, "td")))));
  }
}

/** The host and each VM, for each run that is shown side by side. */
class Body {
  constructor(page) {
    this.page = page;
    this.element = make("div");
    this.sections = new Map();
    this.runs = [];
  }

  /** Draws the runs. Sections with the charts that they had before stay as they are, but for their values. */
  show(runs) {
    const same = runs.length === this.runs.length && runs.every((run, i) => run === this.runs[i]);
    const sections = new Map(this.plan(runs).map(({ id, rows }, n) => {
      const shape = JSON.stringify(rows.map((row) => row.map((panel) => panel?.title)));
      const old = this.sections.get(id);
      if (same && old?.shape === shape) {
        rows.flat().filter(Boolean).forEach((panel, i) => old.charts[i].update(panel, panel.run.at));
        return [id, old];
      }
      const charts = [];
      const element = this.build(id, rows, runs, charts);
      // More at once would be slow to open, and nobody reads on.
      if (id !== null) element.open = old ? old.element.open : n <= 8;
      return [id, { shape, charts, element }];
    }));
    for (const [id, { element }] of this.sections) {
      if (sections.get(id)?.element === element) continue;
      this.page.forget(element);
      element.remove();
    }
    // Whatever stays is not moved, and so keeps the focus.
    [...sections.values()].forEach(({ element }, i) => {
      const there = this.element.children[i];
      if (there !== element) this.element.insertBefore(element, there ?? null);
    });
    [this.sections, this.runs] = [sections, runs];
  }

  /** Rows of panels for the host (`id` null) and each VM: a row for each chart, and a cell of it for each run. */
  plan(runs) {
    const rows = (of, vm) => data.charts.filter((chart) => of.includes(chart.of))
      .map((chart) => runs.map((run) => {
        const found = panel(chart, run, vm);
        return found && { ...found, run };
      }))
      .filter((row) => row.some(Boolean));
    const vms = [...new Set(runs.flatMap((run) => [...run.vms.keys()]))];
    return [{ id: null, rows: rows(["host", "sum", "each"]) }, ...vms.map((vm) => ({ id: vm, rows: rows(["vm"], vm) }))];
  }

  /** A section; adds its charts to `charts`. */
  build(id, rows, runs, charts) {
    const several = runs.length > 1;
    const cells = rows.map((row) => make("div", { class: several ? "beside" : "alone" }, ...row.map((panel, i) => {
      if (!panel) return make("p", { class: "none" }, `nothing of this in ${naming(runs[i])}`);
      const title = several ? `${panel.title}, ${naming(runs[i])}` : panel.title;
      charts.push(this.page.chart({ ...panel, title }, panel.run.at, panel.run));
      return charts[charts.length - 1].figure;
    })));
    const all = make("div", { class: several ? "rows" : "charts" }, ...cells);
    if (id !== null) return make("details", { class: "vm", "data-vm": id }, make("summary", {}, make("h2", {}, id)), all);
    const numbers = runs.map((run) => make("div", {}, ...(several ? [make("h3", {}, naming(run))] : []),
      new Numbers(run, this.page).element));
    return make("section", {}, make("h2", {}, "Host"), ...numbers, all);
  }
}

function naming({ variant, repetition }) {
  const { runs } = data.report;
  return runs.filter((run) => run.variant === variant).length > 1 ? `${variant}, repetition ${repetition}` : variant;
}

/** Charts in which variants are compared, of a VM or all. */
function compared(page, runs) {
  const charts = make("div", { class: "charts" });
  const vms = [...new Set(runs.flatMap((run) => [...run.vms.keys()]))];
  const choice = make("select", { id: "compared" }, make("option", { value: "" }, "all VMs together"),
    ...vms.map((vm, i) => make("option", { value: i }, vm)));
  const show = () => {
    page.forget(charts);
    const panels = data.charts.filter((chart) => chart.compared)
      .map((chart) => comparison(chart, runs, choice.value === "" ? null : vms[choice.value]));
    charts.replaceChildren(...panels.filter(Boolean).map((panel) => page.chart(panel, panel.at, null).figure));
  };
  choice.addEventListener("change", show);
  show();
  return make("section", {}, make("h2", {}, "Comparison"),
    make("p", {}, make("label", { for: "compared" }, "Of "), choice,
      " A line is the median of a variant's repetitions, the area around it reaches from the least to the most."), charts);
}

/** Check boxes for the runs to be shown, at least one of them. */
function chooser(runs, show) {
  const first = new Set([...variants(runs).values()].map(([run]) => run).slice(0, 2));
  const boxes = runs.map((run) => {
    const box = make("input", { type: "checkbox" });
    box.checked = first.has(run);
    box.addEventListener("change", () => {
      if (!boxes.some(({ checked }) => checked)) box.checked = true;
      show(runs.filter((_, i) => boxes[i].checked));
    });
    return box;
  });
  show([...first]);
  return make("fieldset", {}, make("legend", {}, "Runs side by side"),
    ...runs.map((run, i) => make("label", {}, boxes[i], ` ${naming(run)} `)));
}

const VERDICTS = new Map([[true, ["held", "✓ held"]], [false, ["broken", "✗ did not hold"]], [null, ["open", "– not judged"]]]);

function expectations(list) {
  const verdict = (held) => {
    const [kind, words] = VERDICTS.get(held);
    return make("strong", { class: kind }, words);
  };
  return table("What was expected", ["Run", "Expectation", "Measured", "Verdict"],
    list.map(({ run, text, measured, held }) => [run, text, measured, verdict(held)]));
}

const KEYS = "Point at a chart, or go to it with the tabulator key and move with the arrow keys: all charts, legends and the "
  + "table of VMs show that moment. Drag to see a part of the time, or press + and −; Escape shows all again.";

function report(page, { title, facts, unfinished, every, runs: raw, expectations: list, tables }) {
  const runs = raw.map((run) => new Run(run));
  const parts = [make("h1", {}, title)];
  if (unfinished !== null) parts.push(make("p", { class: "notice" }, `Not finished: ${unfinished}`));
  parts.push(make("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])));
  if (list.length) parts.push(expectations(list));
  if (every > 1) parts.push(make("p", {}, `Of each ${every} samples one is in this page; of what is no counter, the least and the greatest of each ${2 * every}.`));
  parts.push(make("p", { class: "keys" }, KEYS));
  const body = new Body(page);
  const shown = runs.filter((run) => run.at.length);
  if (shown.length > 1) parts.push(compared(page, shown), chooser(shown, (chosen) => body.show(chosen)));
  else if (shown.length) body.show(shown);
  parts.push(body.element);
  for (const run of shown.filter(({ marks }) => marks.length)) {
    const of = shown.length > 1 ? ` in ${naming(run)}` : "";
    parts.push(table(`What happened${of}; the numbers stand in the charts`, ["Number", "Time", "What"],
      run.marks.map(({ at, text }, i) => [String(i + 1), clock(at), text])));
  }
  parts.push(...tables.map(({ caption, head, rows }) => table(caption, head, rows)));
  page.root.append(...parts);
}

/** Draws what the host sends, and says so when it sends nothing. */
function live(page) {
  const status = make("p", { role: "status", class: "status" }, "Waiting for the host.");
  const body = new Body(page);
  page.root.append(make("h1", {}, "memvisor"), status, make("p", { class: "keys" }, `${KEYS} The last ten minutes are kept.`), body.element);
  let run = null;
  let last = 0;
  const say = (words, lost) => {
    if (status.textContent !== words) status.textContent = words;
    status.classList.toggle("notice", lost);
  };
  const show = (sample) => {
    const latest = run?.at[run.at.length - 1];
    // Another daemon: what was before is not its past.
    if (run === null || sample.at[0] < latest) run = sample;
    else if (sample.at[0] > latest) run.append(sample, KEPT);
    last = Date.now();
    say(`Live: each second, from ${location.host}.`, false);
    body.show([run]);
    page.refresh();
  };
  const connect = () => {
    const source = new EventSource("/events");
    source.addEventListener("message", (event) => show(new Run(JSON.parse(event.data))));
    // The browser connects again by itself, unless it was refused.
    source.addEventListener("error", () => {
      const refused = source.readyState === EventSource.CLOSED;
      if (refused) setTimeout(connect, 5000);
      say(refused ? "The host sends nothing: as many pages watch it as there may be. This page tries again."
        : "The host does not answer. This page tries again.", true);
    });
  };
  connect();
  // A host that was stopped keeps its connections and says nothing.
  setInterval(() => {
    if (last && Date.now() - last > 5000) say(`The host has said nothing for ${Math.round((Date.now() - last) / 1000)} s.`, true);
  }, 1000);
}

const page = new Page(document.getElementById("page"));
if (data.report) report(page, data.report);
else live(page);
