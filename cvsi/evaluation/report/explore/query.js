// The view "One query": the reference, its captions and edit, the targets' ranks, and strips of results by method.
"use strict";

function QueryView({ run, row, settings }) {
  const [details, setDetails] = useState(null);
  const [failure, setFailure] = useState("");
  const [shown, setShown] = useState(null);
  useEffect(() => {
    let current = true;
    setDetails(null);
    setShown(null);
    loadDetails(run, row).then((found) => current && setDetails(found), (error) => current && setFailure(error.message));
    return () => { current = false; };
  }, [run, row]);
  const rows = useMemo(() => chosenRows(run, settings), [run, settings.toString()]);
  const place = rows.indexOf(row);
  const neighbour = (step) => rows[place < 0 ? 0 : place + step];
  const link = (other) => address(["query", run.queries.split[other], run.queries.id[other]], settings);
  useEffect(() => {
    const key = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) return;
      if (shown !== null) return;
      if (event.key === "Escape") location.hash = address(["queries"], settings);
      const step = { ArrowRight: 1, j: 1, ArrowLeft: -1, k: -1 }[event.key];
      const other = step ? neighbour(step) : undefined;
      if (other !== undefined) location.hash = link(other);
    };
    window.addEventListener("keydown", key);
    return () => window.removeEventListener("keydown", key);
  });
  const { queries, facts } = run;
  const next = neighbour(1), before = neighbour(-1);
  return html`<article class="query">
    <nav class="steps" aria-label="queries">
      <a href=${address(["queries"], settings)}>← all queries</a>
      <span class="soft">${place < 0 ? "" : `${(place + 1).toLocaleString("en")} of ${rows.length.toLocaleString("en")}`}</span>
      ${before !== undefined && html`<a href=${link(before)} title="key: left arrow or k">previous</a>`}
      ${next !== undefined && html`<a href=${link(next)} title="key: right arrow or j">next</a>`}
    </nav>
    <header class="ask">
      <${Picture} run=${run} image=${queries.reference[row]} size=${144} label="reference image" />
      <div>
        <h1>${queries.instruction[row] || "(no text)"}</h1>
        <p class="chips">${queries.split[row]} ${queries.id[row]}${queries.aspects[row].map((code) => html` <span class="chip">${words(queries.aspectNames[code])}</span>`)}</p>
        ${failure && html`<${Line} text=${failure} />`}
        ${details && html`<${Texts} run=${run} row=${row} details=${details} />`}
      </div>
    </header>
    ${details && html`<${Ranks} run=${run} row=${row} details=${details} />`}
    ${details && html`<${Strips} run=${run} details=${details} settings=${settings} onShow=${setShown} />`}
    ${details && shown && html`<${Large} run=${run} details=${details} shown=${shown} onClose=${() => setShown(null)} />`}
  </article>`;
}

/** Captions, the edited description with the words that no caption has, added objects, roles. */
function Texts({ run, row, details }) {
  const known = new Set(details.captions.flatMap((caption) => caption.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []));
  const marked = (text) =>
    text.split(/([\p{L}\p{N}]+)/u).map((piece, index) => (index % 2 && !known.has(piece.toLowerCase()) ? html`<mark>${piece}</mark>` : piece));
  const status = run.queries.status[row], reader = run.queries.readerStatus?.[row];
  return html`<dl class="texts">
    <dt>edited</dt><dd>${details.edited.map((text) => html`<span class="text">${marked(text)}</span>`)}
      ${status !== "ok" && html`<span class=${isFallback(run, row) ? "bad" : "soft"}>${status}</span>`}</dd>
    <dt>added</dt><dd>${details.added || html`<span class="soft">(nothing)</span>`}</dd>
    ${Object.entries(details.roles).map(([role, texts]) => html`<dt>${words(role)}</dt><dd>${texts.map((text) => html`<span class="text">${text}</span>`)}</dd>`)}
    ${reader && reader !== "ok" && html`<dt>reader</dt><dd class="bad">${reader}</dd>`}
  </dl>
  <details><summary>${details.captions.length} captions of the reference</summary><ul>${details.captions.map((text) => html`<li>${text}</li>`)}</ul></details>`;
}

/** A table of every target's rank by method, also when it is far below the results shown. */
function Ranks({ run, row, details }) {
  if (!details.targets.length) return html`<p class="soft">The targets of this split are not public.</p>`;
  const methods = run.facts.methods.map(({ name }) => name).filter((name) => details.ranks[name]?.length);
  const best = details.targets.map((_, index) => Math.min(...methods.map((name) => details.ranks[name][index] ?? Infinity)));
  return html`<section><h2>Targets</h2><div class="scroll" tabindex="0"><table>
    <thead><tr><th scope="col">method</th><th scope="col">${run.facts.metric}</th>${details.targets.map(([id, image]) => html`<th scope="col"><${Picture} run=${run} image=${image} size=${56} label=${`target ${id}`} /></th>`)}</tr></thead>
    <tbody>${methods.map((name) => html`<tr class=${name === run.facts.own ? "own" : ""}><th scope="row">${name}</th><td>${shownNumber(valueOf(run, name, row))}</td>
      ${details.targets.map((_, index) => html`<td class=${details.ranks[name][index] === best[index] ? "best" : ""}>${(details.ranks[name][index] ?? "> 1,000").toLocaleString("en")}</td>`)}</tr>`)}</tbody>
  </table></div></section>`;
}

/** The first results of the chosen methods under each other. */
function Strips({ run, details, settings, onShow }) {
  const names = run.facts.methods.map(({ name }) => name).filter((name) => details.strips[name]);
  const asked = settings.getAll("show").filter((name) => names.includes(name));
  const chosen = asked.length ? asked : comparedMethods(run, settings).filter((name, index, all) => names.includes(name) && all.indexOf(name) === index);
  const toggle = (name) => {
    const { path, settings: now } = readAddress();
    const next = chosen.includes(name) ? chosen.filter((one) => one !== name) : [...chosen, name];
    now.delete("show");
    for (const one of names.filter((one) => next.includes(one))) now.append("show", one);
    history.replaceState(null, "", address(path, now));
    window.dispatchEvent(new Event("hashchange"));
  };
  const targets = new Set(details.targets.map(([, image]) => image)), negatives = new Set(details.negatives);
  return html`<section><h2>Results</h2>
    <div class="toggles" role="group" aria-label="methods shown">${names.map((name) => html`<button type="button" aria-pressed=${chosen.includes(name)} title=${run.facts.methods.find((method) => method.name === name).about} onClick=${() => toggle(name)}>${name}</button>`)}</div>
    ${chosen.map((name) => html`<div class="strip"><h3>${name} <span class="soft">${run.facts.methods.find((method) => method.name === name).about}</span></h3>
      <ol>${details.strips[name].map(([image, score, ...terms], index) => {
        const kind = targets.has(image) ? "target" : negatives.has(image) ? "negative" : run.images.image_id[image] === details.referenceId ? "reference" : "";
        return html`<li class=${kind}><button type="button" title=${run.images.path[image]} onClick=${() => onShow({ method: name, image, score, terms, rank: index + 1 })}>
          <${Picture} run=${run} image=${image} size=${96} label=${`result ${index + 1}, image ${run.images.image_id[image]}`} /></button>
          <span>${index + 1}${kind && html` <b>${kind}</b>`}</span></li>`;
      })}</ol></div>`)}
  </section>`;
}

/** One result enlarged, with its file, caption, and what its score consists of. */
function Large({ run, details, shown, onClose }) {
  const dialog = useRef(null);
  useEffect(() => {
    dialog.current.showModal();
  }, []);
  const method = run.facts.methods.find(({ name }) => name === shown.method);
  const targetIndex = details.targets.findIndex(([, image]) => image === shown.image);
  return html`<dialog ref=${dialog} onClose=${onClose} onClick=${(event) => event.target === dialog.current && dialog.current.close()} aria-label="one result">
    <div class="large">
      <${Picture} run=${run} image=${shown.image} size=${256} />
      <div>
        <h2>${shown.rank}. ${run.images.image_id[shown.image]}</h2>
        <p class="soft">${run.images.path[shown.image]}</p>
        <p>${run.images.caption[shown.image] || "(no caption)"}</p>
        ${targetIndex >= 0 && html`<p class="better">target ${targetIndex + 1} of ${details.targets.length}</p>`}
        <p><b>${shown.method}</b> score ${shown.score.toFixed(4)}</p>
        <p class="soft">${method.fusion}</p>
        ${shown.terms.length > 0 && html`<${Terms} method=${method} values=${shown.terms} />`}
        <form method="dialog"><button>Close</button></form>
      </div>
    </div>
  </dialog>`;
}

/** What a score consists of: the products that add up to it, or the value of each form. */
function Terms({ method, values }) {
  const largest = Math.max(...values.map(Math.abs), 1e-9);
  return html`<table class="terms"><caption>${method.addsUp ? "Products that add up to the score" : "Linear scores that the form combines"}</caption>
    <tbody>${method.terms.map((name, index) => html`<tr><th scope="row">${name.replace(" * ", " × ")}</th>
      <td class="bar"><span class=${values[index] < 0 ? "negative" : ""} style=${{ width: `${(100 * Math.abs(values[index])) / largest}%` }}></span></td>
      <td>${values[index].toFixed(4)}</td></tr>`)}</tbody></table>`;
}
