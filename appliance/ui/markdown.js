// Markdown as elements: the part of CommonMark (https://spec.commonmark.org) that chat models write, and tables. HTML
// stays text, because no markup is parsed.

import { element } from "./server.js"

const FENCE = /^ *(`{3,}|~{3,})/
const HEADING = /^#{1,6} +(.*?)[ #]*$/
const ITEM = /^( *(?:[-*+]|(\d+)[.)]) +)(.*)/
const ROW = /^ *\|.*\| *$/
const DIVIDER = /^ *\|[ :|-]+\| *$/
const BLOCK = [FENCE, HEADING, ITEM, ROW]
const SPAN = /(`+)(.+?)\1(?!`)|\*\*(.+?)\*\*|\*([^\s*][^*]*)\*|\b_([^_]+)_\b|\[([^\]]+)\]\((https?:[^\s)]+)\)/s

export function markdown(text) {
  const lines = text.split("\n")
  const blocks = []
  while (lines.length)
    if (lines[0].trim()) blocks.push(readBlock(lines))
    else lines.shift()
  return blocks
}

function readBlock(lines) {
  const fence = FENCE.exec(lines[0])
  if (fence) return readCode(lines, fence[1])
  const heading = HEADING.exec(lines[0])
  // No heading of the page.
  if (heading && lines.shift()) return element("p", {}, element("strong", {}, ...inline(heading[1])))
  if (ITEM.test(lines[0])) return readList(lines)
  if (ROW.test(lines[0]) && DIVIDER.test(lines[1] ?? "")) return readTable(lines)
  const paragraph = [lines.shift()]
  while (lines[0]?.trim() && !BLOCK.some(start => start.test(lines[0]))) paragraph.push(lines.shift())
  return element("p", {}, ...inline(paragraph.join("\n")))
}

// A block that is still written has no end.
function readCode(lines, fence) {
  lines.shift()
  const end = lines.findIndex(line => line.trim().startsWith(fence))
  const code = lines.splice(0, end < 0 ? lines.length : end)
  lines.shift()
  return element("pre", { tabIndex: 0 }, element("code", {}, code.join("\n")))
}

function readList(lines) {
  const [, , number] = ITEM.exec(lines[0])
  const items = []
  let width = 0
  while (lines.length) {
    const indent = lines[0].search(/\S/)
    const item = ITEM.exec(lines[0])
    if (items.length && (indent >= width || (indent < 0 && lines[1]?.search(/\S/) >= width))) {
      items.at(-1).push(lines.shift().slice(width))
    } else if (item && Boolean(item[2]) === Boolean(number)) {
      width = item[1].length
      items.push([item[3]])
      lines.shift()
    } else if (indent < 0 && ITEM.test(lines[1] ?? "")) lines.shift()
    else break
  }
  const children = items.map(item => element("li", {}, ...unwrapped(markdown(item.join("\n")))))
  return number ? element("ol", { start: Number(number) }, ...children) : element("ul", {}, ...children)
}

// The text of an item is not a paragraph of its own.
const unwrapped = ([first, ...rest]) => (first?.tagName === "P" ? [...first.childNodes, ...rest] : [first ?? "", ...rest])

function readTable(lines) {
  const rows = []
  while (ROW.test(lines[0] ?? "")) rows.push(lines.shift().trim().slice(1, -1).split("|"))
  const [head, , ...body] = rows
  const row = (tag, texts) => element("tr", {}, ...texts.map(text => element(tag, {}, ...inline(text.trim()))))
  return element("table", {}, element("thead", {}, row("th", head)), element("tbody", {}, ...body.map(each => row("td", each))))
}

function inline(text) {
  const match = SPAN.exec(text)
  if (!match) return [text]
  const [all, , code, strong, star, underscore, label, href] = match
  const span =
    code ? element("code", {}, code)
    : strong ? element("strong", {}, ...inline(strong))
    : href ? element("a", { href, rel: "noreferrer", target: "_blank" }, label)
    : element("em", {}, ...inline(star ?? underscore))
  return [text.slice(0, match.index), span, ...inline(text.slice(match.index + all.length))]
}
