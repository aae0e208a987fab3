// The view "Weights" of a served page: a method's numbers as sliders, one query ranked again at once, the split's metric.
"use strict";

const RANK_AFTER = 0, METRIC_AFTER = 200, ADDRESS_AFTER = 400; // milliseconds after a move

function WeightsView({ run, settings }) {
  const methods = run.facts.methods;
  const start = methods.find(({ name }) => name === settings.get("method")) ?? methods.find(({ name }) => name === run.facts.own);
  const [block, setBlock] = useState(() => withColumns(readBlock(settings.get("w")) ?? start.block, run));
  const choose = (name) => {
    setBlock(withColumns(methods.find((method) => method.name === name).block, run));
    changeSettings({ method: name, w: "" });
  };
  useEffect(() => {
    const timer = setTimeout(() => changeSettings({ w: same(block, withColumns(start.block, run)) ? "" : JSON.stringify(block) }), ADDRESS_AFTER);
    return () => clearTimeout(timer);
  }, [block]);
  const labelled = run.rows.filter((row) => isLabelled(run, row));
  const row = run.keys.get(settings.get("query")) ?? labelled[0] ?? run.rows[0];
  return html`<article class="weights">
    <section class="controls" aria-label="numbers">
      <${Choice} label="Start from" value=${start.name} options=${methods.map(({ name }) => [name, name])} onChange=${choose} />
      <p class="soft">${start.about}</p>
      ${leaves(block).map(([path, value]) => html`<${Slider} key=${path.join("/")} path=${path} value=${value} onInput=${(next) => setBlock((current) => changed(current, path, next))} />`)}
      <p><button type="button" onClick=${() => choose(start.name)}>Back to ${start.name}</button></p>
      <${Yaml} block=${block} />
    </section>
    <div>
      <${SplitMetric} run=${run} block=${block} settings=${settings} />
      <${LiveQuery} run=${run} row=${row} block=${block} settings=${settings} />
    </div>
  </article>`;
}

function readBlock(text) {
  try {
    const block = JSON.parse(text);
    return block && typeof block === "object" && !Array.isArray(block) ? block : null;
  } catch {
    return null;
  }
}

const same = (x, y) => JSON.stringify(x) === JSON.stringify(y);

/** A block of weights with all columns that the run's vectors have, those without a weight at zero. */
function withColumns(block, run) {
  if (!block.query || !block.gallery || block.parts) return structuredClone(block);
  const all = (weights, names) => Object.fromEntries(names.map((name) => [name, weights[name] ?? 0]));
  return { ...structuredClone(block), query: all(block.query, run.facts.queryColumns), gallery: all(block.gallery, run.facts.galleryColumns) };
}

/** Every number of a block with its path. */
function leaves(block, path = []) {
  return Object.entries(block).flatMap(([key, value]) =>
    typeof value === "number" ? [[[...path, key], value]] : value && typeof value === "object" ? leaves(value, [...path, key]) : [],
  );
}

function changed(block, [key, ...rest], value) {
  const copy = Array.isArray(block) ? [...block] : { ...block };
  copy[key] = rest.length ? changed(block[key], rest, value) : value;
  return copy;
}

function Slider({ path, value, onInput }) {
  const bounds = useMemo(() => (value >= 0 && value <= 1 ? [0, 1] : [Math.min(-1, -2 * Math.abs(value)), Math.max(1, 2 * Math.abs(value))]), [path.join("/")]);
  const low = Math.min(bounds[0], value), high = Math.max(bounds[1], value);
  const name = path.filter((key) => key !== "forms" && key !== "parts").map(words).join(" · ");
  const given = (event) => Number.isFinite(event.target.valueAsNumber) && onInput(event.target.valueAsNumber);
  return html`<label class="slider"><span>${name}</span>
    <input type="range" min=${low} max=${high} step="any" value=${value} aria-label=${name} onInput=${(event) => onInput(Math.round(event.target.valueAsNumber * 100) / 100)} />
    <input type="number" step="0.05" value=${value} aria-label=${`${name}, as a number`} onInput=${given} /></label>`;
}

/** The block as it stands in params.yaml, without weights of zero. */
function Yaml({ block }) {
  const [copied, setCopied] = useState(false);
  const text = `fusion:\n${yaml(block, 1)}`;
  const copy = () => navigator.clipboard.writeText(text).then(() => setCopied(true), () => setCopied(false));
  useEffect(() => setCopied(false), [text]);
  return html`<details open><summary>For params.yaml</summary><pre tabindex="0">${text}</pre><button type="button" onClick=${copy}>${copied ? "Copied" : "Copy as YAML"}</button></details>`;
}

function yaml(block, depth) {
  const indent = "  ".repeat(depth);
  const plain = (value) => (typeof value === "string" ? (/^[\w+-]+$/.test(value) ? value : JSON.stringify(value)) : JSON.stringify(value));
  return Object.entries(block)
    .filter(([key, value]) => !(key === "score" && same(value, { kind: "sum" })))
    .map(([key, value]) => {
      if (value === null || typeof value !== "object" || Array.isArray(value)) return `${indent}${key}: ${plain(value)}\n`;
      const entries = Object.entries(value).filter(([, one]) => one !== 0 || key === "score");
      const flat = entries.every(([, one]) => typeof one !== "object" || Array.isArray(one));
      return flat ? `${indent}${key}: {${entries.map(([name, one]) => `${name}: ${plain(one)}`).join(", ")}}\n` : `${indent}${key}:\n${yaml(value, depth + 1)}`;
    })
    .join("");
}

/** The metric of a labelled split by the changed numbers, beside the run's own. */
function SplitMetric({ run, block, settings }) {
  const splits = Object.keys(run.facts.splits);
  const split = splits.includes(settings.get("on")) ? settings.get("on") : splits[0];
  const [state, setState] = useState({});
  useEffect(() => {
    if (!split) return undefined;
    const abort = new AbortController();
    const timer = setTimeout(() => follow(run, { split, fusion: block }, abort.signal, setState), METRIC_AFTER);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [run, split, block]);
  if (!split) return html`<p class="soft">No split has public targets, so there is no metric.</p>`;
  const { found, done, error } = state;
  return html`<section class="metric" aria-label="metric"><h2>${run.facts.metric} on ${split}</h2>
    ${splits.length > 1 && html`<${Choice} label="Split" value=${split} options=${splits.map((name) => [name, name])} onChange=${(value) => changeSettings({ on: value })} />`}
    ${error && html`<${Line} text=${error} />`}
    <progress max="1" value=${done ?? 0} hidden=${done === undefined || done >= 1}></progress>
    ${found && html`<p class=${done !== undefined && done < 1 ? "old" : ""}><b class="value">${found.value.toFixed(2)}</b>${" "}<span class="soft">own ${found.own.toFixed(2)}, difference${" "}</span>
        <${Difference} value=${found.difference} />${" "}<span class="soft">(${found.differenceInterval.map((end) => end.toFixed(1)).join(" to ")}):${" "}</span>
        ${["better", "worse", "same"].map((kind, place) => html`${place ? ", " : ""}<${Count} kind=${kind} found=${found} split=${split} settings=${settings} />`)}</p>
      <p class="soft warning">Numbers chosen on a split are no result on it: choose on one, report on another. Difference on the two halves of the queries: ${found.halves.map((half) => (half === null ? "–" : half.toFixed(1))).join(" and ")}.</p>
      <${AspectDots} aspects=${found.aspects} split=${split} settings=${settings} />`}
  </section>`;
}

/** How many queries moved in a direction, which leads to the table of them. */
function Count({ kind, found, split, settings }) {
  const text = `${found[kind].toLocaleString("en")} ${kind === "same" ? "the same" : kind}`;
  if (!found[kind]) return text;
  return html`<a href=${tableAddress(settings, { moved: kind, w: JSON.stringify(found.fusion), on: split, split })}>${text}</a>`;
}

/** Follow the measurement of a metric; a later question ends it. */
async function follow(run, question, signal, setState) {
  setState((state) => ({ ...state, done: 0, error: "" }));
  try {
    const found = await measured(run, question, signal, (done) => setState((state) => ({ ...state, done })));
    if (found) setState({ found, done: 1 });
  } catch (error) {
    if (!signal.aborted) setState((state) => ({ ...state, done: 1, error: error.message }));
  }
}

const KEPT_METRICS = 20;

/** What the server finds of a question, with its progress told; kept for the table. Null where it was cancelled. */
async function measured(run, question, signal, progress) {
  const key = JSON.stringify(question);
  let found = null;
  await lines(`${run.name}/metric`, question, signal, (content) => {
    if (signal.aborted || content.cancelled) return;
    if (content.error) throw new Error(content.error);
    if (content.done !== undefined) progress(content.done);
    else found = { ...content, fusion: question.fusion };
  });
  if (found) {
    run.measured.delete(key);
    run.measured.set(key, found);
    if (run.measured.size > KEPT_METRICS) run.measured.delete(run.measured.keys().next().value);
  }
  return found;
}

/** The mean difference of each aspect as a dot; a click narrows the table of queries to the aspect. */
function AspectDots({ aspects, split, settings }) {
  const box = useRef(null);
  useEffect(() => {
    if (!aspects.length) return undefined;
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const style = { stroke: colour("--ink"), grid: { stroke: colour("--line"), width: 1 }, font: "12px system-ui" };
    const label = (place) => (Number.isInteger(place) && aspects[place] ? words(aspects[place][0]) : "");
    const order = aspects.map((_, place) => place).sort((x, y) => aspects[x][2] - aspects[y][2]);
    const widest = 1.1 * Math.max(1, ...aspects.map(([, , value]) => Math.abs(value)));
    const plot = new uPlot(
      {
        width: Math.max(280, box.current.clientWidth),
        height: 40 + 22 * aspects.length,
        legend: { show: false },
        scales: { x: { time: false, range: [-widest, widest] }, y: { dir: -1, range: [-0.5, aspects.length - 0.5] } },
        axes: [
          { ...style, values: (_, ticks) => ticks.map((tick) => tick.toFixed(1)) },
          { ...style, size: 190, splits: () => aspects.map((_, place) => place), values: (_, ticks) => ticks.map(label) },
        ],
        series: [{}, { stroke: colour("--own"), width: 0, paths: () => null, points: { show: true, size: 9, fill: colour("--own") } }],
        cursor: { drag: { x: false, y: false } },
      },
      [order.map((place) => aspects[place][2]), order],
      box.current,
    );
    plot.over.addEventListener("click", () => {
      const place = order[plot.cursor.idx];
      if (aspects[place]) location.hash = aspectAddress(aspects[place][0], split, settings);
    });
    return () => plot.destroy();
  }, [aspects]);
  if (!aspects.length) return null;
  return html`<h3>Difference by aspect</h3><div class="dots" ref=${box} aria-hidden="true"></div>
    <details><summary>As a list</summary><ul>${aspects.map(([name, number, value]) => html`<li><a href=${aspectAddress(name, split, settings)}>${words(name)}</a> <span class="soft">${number} ${number === 1 ? "query" : "queries"}</span> <${Difference} value=${value} /></li>`)}</ul></details>`;
}

const aspectAddress = (name, split, settings) => tableAddress(settings, { aspect: name, split, moved: "" });

/** The table of queries, narrowed by some settings, all others as they are. */
function tableAddress(settings, changes) {
  const next = new URLSearchParams(settings);
  for (const [name, value] of Object.entries(changes)) {
    next.delete(name);
    if (value) next.set(name, value);
  }
  return address(["queries"], next);
}

/** One query ranked by the changed numbers, above its results by the run's own. */
function LiveQuery({ run, row, block, settings }) {
  const [details, setDetails] = useState(null);
  const [found, setFound] = useState(null);
  const [failure, setFailure] = useState("");
  const [shown, setShown] = useState(null);
  useEffect(() => {
    let current = true;
    setDetails(null);
    loadDetails(run, row).then((one) => current && setDetails(one), (error) => current && setFailure(error.message));
    return () => { current = false; };
  }, [run, row]);
  useEffect(() => {
    const abort = new AbortController();
    const timer = setTimeout(() => {
      const body = JSON.stringify({ row, fusion: block });
      ask(`${run.name}/rank`, { method: "POST", signal: abort.signal, headers: { "content-type": "application/json" }, body }).then(
        (answer) => {
          keepImages(run, answer.images);
          setFound(answer);
          setFailure("");
        },
        (error) => !abort.signal.aborted && setFailure(error.message),
      );
    }, RANK_AFTER);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [run, row, block]);
  const step = (by) => {
    const other = run.rows[(row + by + run.rows.length) % run.rows.length];
    changeSettings({ query: run.key(other) });
  };
  const method = { ...run.series.get(run.own).method, fusion: "the numbers on this page", terms: found?.terms ?? [], addsUp: found?.addsUp };
  return html`<section><h2>One query</h2>
    <div class="ask small"><${Picture} run=${run} image=${run.queries.reference[row]} size=${96} label="reference image" />
      <div><p><a href=${address(["query", run.queries.split[row], run.queries.id[row]], settings)}>${run.queries.instruction[row] || "(no text)"}</a></p>
        <p class="chips">${run.key(row)}</p><p><button type="button" onClick=${() => step(-1)}>previous</button> <button type="button" onClick=${() => step(1)}>next</button></p></div></div>
    ${failure && html`<${Line} text=${failure} />`}
    ${details && found && html`<div class="strip live"><h3>these numbers</h3><${Results} run=${run} results=${found.results} details=${details} series=${{ run, method, label: "these numbers" }} onShow=${setShown} /></div>`}
    ${details && html`<${Strip} series=${run.series.get(run.own)} run=${run} row=${row} details=${run.all.map((one) => (one === run ? details : null))} onShow=${setShown} />`}
    ${details && shown && html`<${Large} row=${row} details=${details} shown=${shown} onClose=${() => setShown(null)} />`}
  </section>`;
}
