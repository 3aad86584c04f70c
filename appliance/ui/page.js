// The page looks at the server again and again, while somebody looks at the page.

import { ask, fault } from "./server.js"
import { look } from "./models.js"
import { offer } from "./playground.js"

const EVERY = 1500

async function again() {
  if (!document.hidden) {
    try {
      offer(await look())
    } catch {
      document.querySelector("#verdict").textContent = "The server does not answer."
    }
  }
  setTimeout(again, EVERY)
}

async function config() {
  const answer = await ask("config")
  document.querySelector("#yaml").textContent = answer.ok ? await answer.text() : await fault(answer)
}

document.addEventListener("key", config)
config()
again()
