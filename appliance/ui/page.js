// The page refreshes itself while it is visible.

import { byId, errorMessage, request } from "./server.js"
import { refreshModels, showOffline } from "./models.js"
import "./connect.js"
import { listModels } from "./playground.js"

const INTERVAL_MS = 1500

async function refresh() {
  if (!document.hidden) {
    try {
      listModels(await refreshModels())
    } catch {
      showOffline()
    }
  }
  setTimeout(refresh, INTERVAL_MS)
}

async function showConfig() {
  const response = await request("config")
  byId("yaml").textContent = response.ok ? await response.text() : await errorMessage(response)
}

document.addEventListener("key", showConfig)
showConfig()
refresh()
