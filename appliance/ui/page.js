// The page refreshes itself while it is visible.

import { errorMessage, request } from "./server.js"
import { refreshModels } from "./models.js"
import { listModels } from "./playground.js"

const INTERVAL_MS = 1500

async function refresh() {
  if (!document.hidden) {
    try {
      listModels(await refreshModels())
    } catch {
      document.querySelector("#status").textContent = "The server does not respond."
    }
  }
  setTimeout(refresh, INTERVAL_MS)
}

async function showConfig() {
  const response = await request("config")
  document.querySelector("#yaml").textContent = response.ok ? await response.text() : await errorMessage(response)
}

document.addEventListener("key", showConfig)
showConfig()
refresh()
