// The view "Ask" of a served page: an image, a text, or both, to ranked images; and labels in a folder's file of queries.
"use strict";

const LARGEST = 32 * 1024 * 1024; // bytes of a file that is sent

function AskView({ run, settings }) {
  const [image, setImage] = useState(null); // {number} of the gallery, or {file, url}
  const [text, setText] = useState(settings.get("text") ?? "");
  const [edited, setEdited] = useState("");
  const [state, setState] = useState({});
  const [shown, setShown] = useState(null);
  const given = settings.get("image");
  useEffect(() => {
    if (given === null) return;
    setImage({ number: Number(given) });
    setState({});
    setShown(null);
  }, [given]);
  useEffect(() => () => image?.url && URL.revokeObjectURL(image.url), [image]);
  const take = (file) => {
    if (!file) return;
    if (file.size > LARGEST) setState({ error: `${file.name}: more than ${LARGEST >> 20} MiB; choose a smaller file` });
    else if (file.size === 0) setState({ error: `${file.name}: an empty file` });
    else {
      setState({});
      setImage({ file, url: URL.createObjectURL(file) });
    }
  };
  const send = async (event) => {
    event.preventDefault();
    const kind = image ? (text.trim() ? "composed" : "like") : "text";
    if (!image && !text.trim()) return setState({ error: "Choose an image, write a text, or both." });
    setState({ busy: true });
    const question = { kind, k: 40, text: kind === "like" ? "" : text };
    if (image?.file) question.image = await base64(image.file);
    else if (image) question.image_id = run.images.get(image.number)?.id ?? "";
    if (kind === "composed" && edited.trim()) question.edited = edited.split("\n").filter((line) => line.trim());
    return answer(run, question, setState);
  };
  const { busy, edit, found, error } = state;
  const series = { run, label: "score", method: { ...run.series.get(run.own).method, terms: [] } };
  return html`<article class="asking">
    <form class="ask" onSubmit=${send} onDragOver=${(event) => event.preventDefault()} onDrop=${(event) => { event.preventDefault(); take(event.dataTransfer.files[0]); }}>
      <div class="pick">
        ${image ? (image.url ? html`<img class="picture" src=${image.url} alt="the chosen file" />` : html`<${Picture} run=${run} image=${image.number} size=${144} label="reference image" />`) : html`<span class="picture none">drop an image here</span>`}
        <label class="choice"><span>Image file</span><input type="file" accept="image/*" onChange=${(event) => take(event.target.files[0])} /></label>
        ${image && html`<button type="button" onClick=${() => { setImage(null); changeSettings({ image: "" }); }}>Without image</button>`}
      </div>
      <div>
        <label class="choice"><span>${image ? "What is different in the wanted image" : "Text"}</span><input type="text" name="text" value=${text} maxlength="10000" placeholder=${image ? "is asleep (empty: more like this)" : "a cat asleep on a sofa"} onInput=${(event) => setText(event.target.value)} /></label>
        ${image && html`<details><summary>Your own edited description</summary><label class="choice"><span>Used in place of the language model's answer; a line each</span><textarea name="edited" rows="2" onInput=${(event) => setEdited(event.target.value)}>${edited}</textarea></label></details>`}
        <p><button type="submit" disabled=${busy}>${image && !text.trim() ? "More like this" : "Search"}</button>${busy && html`${" "}<span class="soft" role="status">${edit ? "ranking the images…" : "working; the first answer loads the models"}</span>`}</p>
      </div>
    </form>
    ${error && html`<${Line} text=${error} />`}
    ${edit && html`<dl class="texts"><dt>edited</dt><dd>${edit.edited.map((line) => html`<span class="text">${line}</span>`)}${edit.status && edit.status !== "ok" && html`<span class=${STATUS_OK.test(edit.status) ? "soft" : "bad"}>${edit.status}</span>`}</dd>
      ${edit.added && html`<dt>added</dt><dd>${edit.added}</dd>`}
      ${Object.entries(edit.roles).map(([role, texts]) => texts.length > 0 && html`<dt>${words(role)}</dt><dd>${texts.join(", ")}</dd>`)}</dl>`}
    ${found?.query.length > 0 && html`<p>The same as the dataset's query <a href=${address(["query", ...found.query], new URLSearchParams())}>${found.query.join("/")}</a>, with its edit.</p>`}
    ${found?.query.length === 0 && html`<${Keep} run=${run} image=${image} text=${text} />`}
    ${found && html`<div class="strip grid"><${Results} run=${run} results=${found.results} details=${NO_DETAILS} series=${series} onShow=${setShown} /></div>`}
    ${shown && html`<${Large} details=${NO_DETAILS} shown=${shown} onClose=${() => setShown(null)} />`}
  </article>`;
}

const NO_DETAILS = { targets: [], negatives: [], reference: "" };

const base64 = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });

/** Send a question; its edit arrives before its results. */
async function answer(run, question, setState) {
  try {
    await lines(`${run.name}/ask`, question, undefined, (content) => {
      if (content.error) throw new Error(content.error);
      if (content.edit) setState({ busy: true, edit: content.edit });
      else {
        keepImages(run, content.images);
        setState((state) => ({ edit: state.edit, found: content }));
      }
    });
  } catch (error) {
    setState({ error: error.message });
  }
}

/** Add the question to the folder's file of queries. */
function Keep({ run, image, text }) {
  const [line, setLine] = useState("");
  const why = run.facts.noLabels || (image?.number === undefined ? "the reference must be an image of the folder" : text.trim() ? "" : "a query needs a text");
  const keep = () => write(run, { reference: image.number, instruction: text }, setLine);
  return html`<p><button type="button" disabled=${Boolean(why)} title=${why} onClick=${keep}>Keep as a query</button> <span class="soft" role="status">${line || why}</span></p>`;
}

/** Mark a result as right or wrong for a query of the dataset. */
function Marks({ run, row, image, kind }) {
  const [line, setLine] = useState("");
  const [now, setNow] = useState({ target: "right", negative: "wrong" }[kind] ?? "none");
  const why = run.facts.noLabels;
  const choose = (mark) => write(run, { row, image, mark }, setLine).then((written) => written && setNow(mark));
  return html`<p class="toggles" role="group" aria-label="label">${["right", "wrong", "none"].map((mark) => html`<button type="button" aria-pressed=${now === mark} disabled=${Boolean(why)} title=${why} onClick=${() => choose(mark)}>${mark}</button>`)} <span class="soft" role="status">${line || why}</span></p>`;
}

/** Write a label; whether it was written. The file's new digest belongs to the next label. */
async function write(run, label, setLine) {
  try {
    const body = JSON.stringify({ ...label, seen: run.facts.queryFile });
    const answered = await ask(`${run.name}/label`, { method: "POST", headers: { "content-type": "application/json" }, body });
    run.facts.queryFile = answered.queryFile;
    setLine("written; dvc repro computes with it");
    return true;
  } catch (error) {
    setLine(error.message);
    return false;
  }
}
