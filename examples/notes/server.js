// Bulkhead's example app: notes in Markdown, kept in one file of a volume.
//
// What it takes from its surroundings: NOTES_DIR, the volume's directory
// (./data when absent), and the port below, which the manifest names too.

'use strict'

const fs = require('node:fs')
const path = require('node:path')
const { build } = require('./app')

const PORT = 3000
// On SIGTERM requests under way may finish; after this time the process ends anyway.
const CLOSE_WITHIN_MS = 8000

const directory = process.env.NOTES_DIR || path.join(__dirname, 'data')
const version = fs.readFileSync(path.join(__dirname, 'version.txt'), 'utf8').trim()
const app = build({ directory, version, logger: { level: process.env.LOG_LEVEL || 'info', base: null } })

async function stop (signal) {
  app.log.info({ signal }, 'closing: no new connection is accepted, requests under way finish')
  setTimeout(() => process.exit(1), CLOSE_WITHIN_MS).unref()
  await app.close()
  process.exit(0)
}

process.once('SIGTERM', stop)
process.once('SIGINT', stop)

app.listen({ host: '127.0.0.1', port: PORT }).catch((error) => {
  app.log.error(error)
  process.exit(1)
})
