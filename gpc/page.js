"use strict"
// Embeds the charts of page.html, filters its table of episodes, and shows the episode that is selected.

const shown = document.getElementById("shown")
const FIELDS = ["episode", "policy", "seed", "result", "score", "steps"]

function play(video, url, {start, end}) {
  video.src = `${url}#t=${Math.max(start, 0.01)},${end}`  // at 0 Chromium draws no frame
  video.ontimeupdate = () => {
    if (video.currentTime >= end) video.currentTime = start
  }
}

function clips() {
  const found = new Map()
  for (const gallery of document.querySelectorAll(".clips")) {
    const bytes = Uint8Array.from(atob(gallery.dataset.file), c => c.charCodeAt(0))
    const url = URL.createObjectURL(new Blob([bytes], {type: "video/mp4"}))
    for (const video of gallery.querySelectorAll("video")) {
      play(video, url, video.dataset)
      found.set(Number(video.dataset.seed), [url, video.dataset])
    }
  }
  return found
}

function show(row, replay, videos) {
  const [text, command, video] = shown.querySelectorAll("p, pre, video")
  text.textContent = FIELDS.filter(name => row[name] !== undefined).map(name => `${name} ${row[name]}`).join(", ")
  command.textContent = `${replay} --episode ${row.episode} --video FILE.mp4`
  const clip = row.phase === "search" ? undefined : videos.get(row.seed)
  video.hidden = !clip
  if (clip) play(video, ...clip)
  else video.removeAttribute("src")
  shown.hidden = false
}

function selectable(model, replay, videos) {
  for (const source of model.references()) {
    if (!source.get_column?.("episode")) continue
    source.selected.properties.indices.change.connect(() => {
      const [index] = source.selected.indices
      if (index === undefined) return
      show(Object.fromEntries(source.columns().map(name => [name, source.get_column(name)[index]])), replay, videos)
    })
  }
}

function filtered(table, filters) {
  const {source, view} = table
  const inputs = [...filters.querySelectorAll("select, input")]
  const count = filters.querySelector("output")
  const update = () => {
    const wanted = inputs.filter(input => input.value !== "").map(input => [source.get_column(input.dataset.column), input.value])
    const rows = Array.from(source.get_column("episode"), (_, i) => wanted.every(([column, value]) => String(column[i]) === value))
    view.filter.booleans = rows
    count.textContent = `${rows.filter(Boolean).length} of ${rows.length} episodes`
  }
  for (const input of inputs) input.oninput = update
  update()
}

async function main() {
  const videos = clips()
  shown.querySelector("button").onclick = () => (shown.hidden = true)
  for (const place of document.querySelectorAll(".chart")) {
    await Bokeh.embed.embed_item(JSON.parse(place.dataset.item), place)
    const [model] = Bokeh.documents.at(-1).roots()
    selectable(model, place.dataset.replay, videos)
    if (place.matches(".episodes")) filtered(model, place.parentElement.previousElementSibling)
  }
  document.documentElement.dataset.ready = "true"
}

main()
