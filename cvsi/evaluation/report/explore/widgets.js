// Small parts that several views use: a picture, a chip, a number.
"use strict";

const { html, render, useState, useEffect, useMemo, useRef, useLayoutEffect } = htmPreact;

/** An image as its part of a sheet, or a box with its name where there is no picture. */
function Picture({ run, image, size, label = "" }) {
  const { facts, images } = run;
  const name = images.image_id[image] ?? "";
  if (image < 0 || image >= facts.pictures) {
    return html`<span class="picture none" style=${{ width: `${size}px`, height: `${size}px` }} title=${name}>${name || "no picture"}</span>`;
  }
  const perSheet = facts.columns * facts.columns;
  const cell = image % perSheet, sheet = String(Math.floor(image / perSheet)).padStart(2, "0");
  const onSheet = Math.min(perSheet, facts.pictures - Math.floor(image / perSheet) * perSheet);
  const lines = Math.ceil(onSheet / facts.columns);
  const ratio = images.ratio[image] || 1;
  const style = {
    width: `${Math.round(size * Math.min(1, ratio))}px`,
    height: `${Math.round(size * Math.min(1, 1 / ratio))}px`,
    backgroundImage: `url("explore/pictures/${sheet}.jpg")`,
    backgroundSize: `${facts.columns * size}px ${lines * size}px`,
    backgroundPosition: `-${(cell % facts.columns) * size}px -${Math.floor(cell / facts.columns) * size}px`,
  };
  const box = { width: `${size}px`, height: `${size}px` };
  return html`<span class="frame" style=${box}><span class="picture" role="img" aria-label=${label || `image ${name}`} title=${name} style=${style}></span></span>`;
}

const words = (name) => name.replaceAll("_", " ");
const shownNumber = (value) => (value === null || value === undefined ? "–" : value.toFixed(1));
const shownRank = (run, method, row) =>
  !isLabelled(run, row) ? "" : (rankOf(run, method, row) ?? "> 1,000").toLocaleString("en");

/** A difference with its sign, coloured by it. */
function Difference({ value }) {
  if (value === null) return html`<span class="soft">–</span>`;
  const kind = value > 0 ? "better" : value < 0 ? "worse" : "soft";
  return html`<span class=${kind}>${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(1)}</span>`;
}

function Choice({ label, value, options, onChange }) {
  return html`<label class="choice"><span>${label}</span>
    <select value=${value} onChange=${(event) => onChange(event.target.value)}>
      ${options.map(([key, text]) => html`<option value=${key} selected=${key === value}>${text}</option>`)}
    </select></label>`;
}

function Line({ text }) {
  return html`<p class="wait" role="alert">${text}</p>`;
}
