// The data of the page as runs and panels, and numbers as texts. Nothing here touches the document.

/** A recording: columns by the names of series, for the host and each VM. */
class Run {
  constructor({ variant = "", repetition = 1, at_ms, host, vms, marks }) {
    const unpack = (columns) => new Map(Object.entries(columns).map(([name, values]) =>
      [name, Array.isArray(values) ? values : new Array(at_ms.length).fill(values)]));
    this.variant = variant;
    this.repetition = repetition;
    this.at = at_ms.map((ms) => ms / 1000);
    this.host = unpack(host);
    this.vms = new Map(Object.entries(vms).map(([vm, columns]) => [vm, unpack(columns)]));
    this.marks = marks.map(({ at_ms, text }) => ({ at: at_ms / 1000, text }));
  }

  /** Adds the moments of another run, and forgets what is more than `most` moments ago. */
  append(other, most) {
    const forget = Math.max(0, this.at.length + other.at.length - most);
    const join = (mine, theirs) => {
      for (const name of new Set([...mine.keys(), ...theirs.keys()])) {
        const old = mine.get(name) ?? new Array(this.at.length).fill(null);
        const values = [...old, ...(theirs.get(name) ?? new Array(other.at.length).fill(null))].slice(forget);
        if (values.some((value) => value !== null)) mine.set(name, values);
        else mine.delete(name);
      }
    };
    join(this.host, other.host);
    for (const vm of new Set([...this.vms.keys(), ...other.vms.keys()])) {
      const columns = this.vms.get(vm) ?? new Map();
      join(columns, other.vms.get(vm) ?? new Map());
      if (columns.size) this.vms.set(vm, columns);
      else this.vms.delete(vm);
    }
    this.at = [...this.at, ...other.at].slice(forget);
  }

  /** The index of the latest sample that is not after a moment; the last one for null. */
  index(moment) {
    if (moment === null) return this.at.length - 1;
    let [low, high] = [0, this.at.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.at[middle] > moment) high = middle;
      else low = middle + 1;
    }
    return low - 1;
  }

  /** The values of a series that are drawn: of a counter its rate. Undefined if there are none. */
  drawn(columns, name) {
    const values = columns.get(name);
    if (!values) return undefined;
    const drawn = data.series[name].counter ? rates(this.at, values) : values;
    return name.startsWith("guest_") ? held(drawn, columns.get(SIZE)) : drawn;
  }
}

/** What a counter grew by in a second since it had a value before; null where it began anew. */
function rates(at, values) {
  let before = -1;
  return values.map((value, i) => {
    if (value === null) return null;
    const last = before;
    before = i;
    if (last < 0 || value < values[last] || at[i] <= at[last]) return null;
    return (value - values[last]) / (at[i] - at[last]);
  });
}

/** Guests speak more seldom than samples are taken: what they said holds until they say more, or are gone. */
function held(values, sizes) {
  let last = null;
  return values.map((value, i) => {
    last = (sizes?.[i] ?? null) === null ? null : value ?? last;
    return last;
  });
}

/** Adds columns up; null where all of them are. */
function sum(columns) {
  return columns[0].map((_, i) => {
    const values = columns.map((column) => column[i]).filter((value) => value !== null);
    return values.length ? values.reduce((a, b) => a + b) : null;
  });
}

/** The unit in which a series is drawn. */
function unitOf(name) {
  const { unit, counter } = data.series[name];
  return counter ? `${unit || "things"}/s` : unit;
}

// More areas than that cannot be told apart.
const MOST_AREAS = 12;

/** What a chart shows of a run: `{title, form, unit, series: [{label, values}]}`, or null if the run has nothing of it. */
function panel(chart, run, vm) {
  const unit = unitOf(chart.series[0][0]);
  let series = [];
  if (chart.of === "each") {
    for (const [vm, columns] of run.vms) {
      series.push({ label: vm, values: run.drawn(columns, chart.series[0][0]) });
    }
  } else {
    for (const [name, label] of chart.series) {
      let values;
      if (chart.of === "sum") {
        const columns = [...run.vms.values()].map((columns) => run.drawn(columns, name)).filter(Boolean);
        values = columns.length ? sum(columns) : undefined;
      } else {
        values = run.drawn(chart.of === "host" ? run.host : run.vms.get(vm) ?? new Map(), name);
      }
      series.push({ label, name, values });
    }
  }
  series = series.filter(({ values }) => values?.some((value) => value !== null));
  if (chart.of === "each" && series.length > MOST_AREAS) {
    const size = ({ values }) => values.reduce((a, b) => a + (b ?? 0), 0);
    series.sort((a, b) => size(b) - size(a));
    const rest = series.splice(MOST_AREAS - 1);
    series.push({ label: `${rest.length} others`, values: sum(rest.map(({ values }) => values)) });
  }
  // What happens never is not worth a line, unless nothing else happens either.
  if (unit.endsWith("/s")) {
    const some = series.filter(({ values }) => values.some((value) => value));
    series = some.length ? some : series.slice(0, 1);
  }
  return series.length ? { title: chart.title, form: chart.form, unit, series } : null;
}

const BYTES = [[2 ** 30, "GiB", 2], [2 ** 20, "MiB", 1], [2 ** 10, "KiB", 1], [0, "B", 0]];
const SECONDS = [[1, "s"], [1e-3, "ms"], [0, "µs"]];

/** A number as people read it: `digits` valid ones, and no zeroes behind them. */
function short(value, digits = 3) {
  if (value === 0 || Math.abs(value) >= 10 ** digits) return String(Math.round(value));
  return String(Number(value.toPrecision(digits)));
}

/** A value of a unit as text. Bytes are written as the command line writes them. */
function text(value, unit) {
  if (value === null || value === undefined) return "–";
  const [, base, rate = ""] = unit.match(/^(.*?)(\/s)?$/);
  switch (base) {
    case "bytes": {
      const [size, name, digits] = BYTES.find(([size]) => Math.abs(value) >= size);
      return `${(size ? value / size : value).toFixed(rate && !size ? 1 : digits)} ${name}${rate}`;
    }
    case "seconds": {
      if (value === 0) return `0 s${rate}`;
      const [size, name] = SECONDS.find(([size]) => Math.abs(value) >= size);
      return `${short(value / (size || 1e-6))} ${name}${rate}`;
    }
    case "ratio": return `${short(value * 100)} %${rate}`;
    case "": case "things": return `${short(value)}${rate && " /s"}`;
    default: return `${short(value)} ${base}${rate}`;
  }
}

/** A value as the label of a tick: short, and without a word that the title has. */
function onAxis(value, unit) {
  const base = unit.replace("/s", "");
  const known = ["bytes", "seconds", "ratio"].includes(base);
  return known ? text(value, unit).replace(/\.0+ /, " ") : `${short(value)}${unit === base ? "" : " /s"}`;
}

/** The steps of an axis of bytes are powers of two, of any other the library's. */
const BYTE_STEPS = Array.from({ length: 60 }, (_, power) => 2 ** power);

/** A moment as text. */
function clock(seconds) {
  const whole = Math.floor(seconds);
  const two = (number) => String(number).padStart(2, "0");
  const tenths = Math.round((seconds - whole) * 10) % 10;
  const fraction = tenths ? `.${tenths}` : "";
  const minutes = `${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}${fraction}`;
  return whole >= 3600 ? `${Math.floor(whole / 3600)}:${minutes}` : minutes;
}

/** Runs by their variants, in order. */
function variants(runs) {
  const found = new Map();
  for (const run of runs) found.set(run.variant, [...(found.get(run.variant) ?? []), run]);
  return found;
}

/** A panel in which variants are compared: for each the median of its repetitions, and the least and the most. `vm` null
 * stands for the sum over all VMs. */
function comparison(chart, runs, vm) {
  const name = chart.series[0][0];
  const at = runs.reduce((a, b) => (b.at.length > a.at.length ? b : a)).at;
  const values = (run) => {
    if (chart.of === "host") return run.drawn(run.host, name);
    const of = vm === null ? [...run.vms.values()] : [run.vms.get(vm) ?? new Map()];
    const columns = of.map((columns) => run.drawn(columns, name)).filter(Boolean);
    return columns.length ? sum(columns) : undefined;
  };
  // A sample stands for the time up to the next; behind the end of a run there is nothing.
  const step = at.length > 1 ? (at[at.length - 1] - at[0]) / (at.length - 1) : 1;
  const series = [];
  for (const [variant, repetitions] of variants(runs)) {
    const columns = repetitions.map((run) => {
      const own = values(run);
      return at.map((moment) => {
        const i = run.index(moment);
        return own && i >= 0 && moment - run.at[i] < 2 * step ? own[i] : null;
      });
    });
    const each = at.map((_, i) => columns.map((column) => column[i]).filter((v) => v !== null).sort((a, b) => a - b));
    const of = (pick) => each.map((sorted) => (sorted.length ? pick(sorted) : null));
    const median = of((s) => (s[(s.length - 1) >> 1] + s[s.length >> 1]) / 2);
    if (!median.some((value) => value !== null)) continue;
    const spread = repetitions.length > 1 ? { least: of((s) => s[0]), most: of((s) => s[s.length - 1]) } : {};
    series.push({ label: variant, values: median, ...spread });
  }
  const form = chart.form === "stacked" ? "lines" : chart.form;
  return series.length ? { title: chart.compared, form, unit: unitOf(name), at, series } : null;
}
