// The API reference: every operation of the OpenAPI document, with a form to send a request.

import { byId, element, errorMessage, request } from "./server.js"

let schemas = {}

const resolve = schema => (schema?.$ref ? schemas[schema.$ref.split("/").pop()] : schema) ?? {}

// A type as text: the name of a schema, or its JSON types.
function typeName(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop()
  if (schema.anyOf) return schema.anyOf.map(typeName).join(" | ")
  if (schema.type === "array") return `list of ${typeName(schema.items ?? {})}`
  if (schema.const !== undefined) return JSON.stringify(schema.const)
  return [schema.type ?? "any"].flat().join(" | ")
}

function nestedSchemas(schema, found = new Map()) {
  if (schema.$ref && !found.has(typeName(schema))) {
    found.set(typeName(schema), resolve(schema))
    nestedSchemas(resolve(schema), found)
  }
  const parts = [...(schema.anyOf ?? []), ...Object.values(schema.properties ?? {}), schema.items]
  for (const part of parts.filter(Boolean)) nestedSchemas(part, found)
  return found
}

function schemaTables(schema) {
  const objects = [...nestedSchemas(schema)].filter(([, each]) => each.properties)
  return objects.map(([name, { properties, required = [], description = "" }]) => element("table", {},
    element("caption", {}, [name, description].filter(Boolean).join(": ")),
    element("tbody", {}, ...Object.entries(properties).map(([field, type]) => element("tr", {},
      element("th", { scope: "row" }, field),
      element("td", {}, typeName(type) + (required.includes(field) ? ", required" : "")))))))
}

// The smallest value that a schema allows.
function example(schema, depth = 0) {
  const { anyOf, const: constant, enum: values, properties = {}, required = [], type, items } = resolve(schema)
  if (constant !== undefined) return constant
  if (values) return values[0] ?? ""
  if (anyOf) return example(anyOf[0], depth)
  const types = [type].flat()
  if (types.includes("null")) return null
  if (types.includes("array")) return items && depth < 4 ? [example(items, depth + 1)] : []
  if (types.includes("string")) return ""
  if (types.includes("boolean")) return false
  if (types.includes("integer") || types.includes("number")) return 0
  return Object.fromEntries(required.map(name => [name, example(properties[name] ?? {}, depth + 1)]))
}

function requestForm(method, path, operation, body) {
  const inputs = (operation.parameters ?? []).map(({ name, schema }) => {
    const { enum: values = [], const: constant } = resolve(schema)
    const options = (constant === undefined ? values : [constant]).map(value => element("option", { value }, value))
    return element("select", { name, ariaLabel: name }, ...options)
  })
  const value = body && JSON.stringify({ ...("model" in (resolve(body).properties ?? {}) && { model: firstModel() }), ...example(body) }, null, 2)
  const text = element("textarea", { rows: 6, value: value ?? "", ariaLabel: "Request body", hidden: !body })
  const output = element("pre", { tabIndex: 0, hidden: true, ariaLabel: "Response" })
  const form = element("form", {}, ...inputs, text, element("div", { className: "row" }, element("button", {}, "Send")), output)
  form.addEventListener("submit", async event => {
    event.preventDefault()
    output.hidden = false
    output.textContent = "Sending…"
    const target = inputs.reduce((filled, input) => filled.replace(`{${input.name}}`, input.value), path)
    try {
      const response = await request(target.slice(1) || ".", { method, body: body && text.value })
      output.textContent = `${response.status} ${response.statusText}\n\n${await response.text()}`
    } catch (error) {
      output.textContent = error.message
    }
  })
  return form
}

const firstModel = () => schemas.ModelName?.enum[0] ?? ""

// An operation is listed once; clients of other servers find it at more paths.
function operationDetails({ method, paths, operation }) {
  const [path, ...others] = paths
  const summary = element("summary", {}, element("b", {}, method), " ", element("code", {}, path), ` ${operation.summary}`)
  const details = element("details", {}, summary)
  details.addEventListener("toggle", () => {
    const content = operation.requestBody?.content ?? {}
    const form = content["multipart/form-data"]?.schema
    const body = content["application/json"]?.schema
    const response = operation.responses["200"].content?.["application/json"]?.schema
    details.append(
      ...(others.length ? [element("p", {}, `Also at ${others.join(", ")}`)] : []),
      ...(body || form ? [element("h3", {}, `Request${form ? " (multipart form)" : ""}`), ...schemaTables(body ?? form)] : []),
      ...(response ? [element("h3", {}, `Response: ${typeName(response)}`), ...schemaTables(response)] : []),
      ...(form ? [] : [requestForm(method, path, operation, body)]))
  }, { once: true })
  return details
}

async function load() {
  const status = byId("status")
  const response = await request("schema/openapi.json")
  if (!response.ok) {
    status.textContent = await errorMessage(response)
    return
  }
  const { paths, components, info } = await response.json()
  schemas = components.schemas
  const operations = {}
  for (const [path, item] of Object.entries(paths))
    for (const [method, operation] of Object.entries(item)) {
      const parameters = (operation.parameters ?? []).map(each => each.name)
      const same = [operation.tags[0], method, operation.summary, ...parameters].join()
      const listed = (operations[same] ??= { method: method.toUpperCase(), paths: [], operation })
      listed.paths.push(path)
    }
  const sections = Object.entries(Object.groupBy(Object.values(operations), each => each.operation.tags[0]))
  byId("operations").replaceChildren(
    ...sections.map(([tag, listed]) => element("section", {}, element("h2", {}, tag), ...listed.map(operationDetails))))
  status.textContent = `Version ${info.version}`
}

document.addEventListener("key", load)
load()
