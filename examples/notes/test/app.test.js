'use strict'

const assert = require('node:assert')
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')
const { test } = require('node:test')
const { build } = require('../app')

function fixture (t) {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'notes-'))
  const app = build({ directory, version: 'v-test' })
  t.after(async () => {
    await app.close()
    fs.rmSync(directory, { recursive: true })
  })
  return app
}

test('the page shows the version and the notes, escaped', async (t) => {
  const app = fixture(t)
  const made = await app.inject({ method: 'POST', url: '/notes', payload: { text: '**bold** <script>x</script>' } })
  assert.strictEqual(made.statusCode, 201)
  const page = await app.inject({ url: '/' })
  assert.match(page.body, /v-test/)
  assert.match(page.body, /<strong>bold<\/strong> &lt;script&gt;/)
})

test('health', async (t) => {
  const answer = await fixture(t).inject({ url: '/health' })
  assert.deepStrictEqual(answer.json(), { ok: true, version: 'v-test' })
})

test('a form is answered with a redirect, an empty note is refused', async (t) => {
  const app = fixture(t)
  const headers = { 'content-type': 'application/x-www-form-urlencoded', accept: 'text/html' }
  const sent = await app.inject({ method: 'POST', url: '/notes', headers, payload: 'text=hello' })
  assert.strictEqual(sent.statusCode, 303)
  const refused = await app.inject({ method: 'POST', url: '/notes', headers, payload: 'text=++' })
  assert.strictEqual(refused.statusCode, 400)
  assert.strictEqual((await app.inject({ url: '/notes' })).json().length, 1)
})
