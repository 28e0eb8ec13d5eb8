'use strict'

const path = require('node:path')
const Fastify = require('fastify')
const MarkdownIt = require('markdown-it')
const nunjucks = require('nunjucks')
const { NoteStore, TEXT_MAX_BYTES } = require('./store')

// A form field of TEXT_MAX_BYTES can triple in length when it is URL-encoded.
const BODY_MAX_BYTES = 3 * TEXT_MAX_BYTES + 1024

/** Builds the web service; `directory` is where notes are kept, `version` is shown on the page. */
function build ({ directory, version, logger = false }) {
  const store = new NoteStore(directory)
  const markdown = new MarkdownIt({ html: false, linkify: true })
  const views = new nunjucks.Environment(new nunjucks.FileSystemLoader(path.join(__dirname, 'views')), {
    autoescape: true
  })
  views.addFilter('markdown', (text) => new nunjucks.runtime.SafeString(markdown.render(text)))

  // Idle keep-alive connections are closed at once on close(), those with a request under way when it ends.
  const app = Fastify({ logger, bodyLimit: BODY_MAX_BYTES, forceCloseConnections: 'idle' })
  app.register(require('@fastify/formbody'))

  app.addHook('onSend', async (request, reply) => {
    reply.header('x-content-type-options', 'nosniff')
    reply.header('referrer-policy', 'no-referrer')
    reply.header('content-security-policy', "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'")
  })

  app.get('/health', { logLevel: 'warn' }, async () => ({ ok: true, version }))

  app.get('/version', { logLevel: 'warn' }, async (request, reply) => {
    reply.type('text/plain; charset=utf-8')
    return version + '\n'
  })

  app.get('/', async (request, reply) => {
    reply.type('text/html; charset=utf-8')
    return views.render('index.html', { version, notes: store.list(), greeting: process.env.GREETING })
  })

  app.get('/notes', async () => store.list())

  app.post('/notes', async (request, reply) => {
    const text = typeof request.body?.text === 'string' ? request.body.text.trim() : ''
    if (text === '' || Buffer.byteLength(text) > TEXT_MAX_BYTES) {
      return reply.code(400).send({ error: `a note has 1 to ${TEXT_MAX_BYTES} bytes` })
    }
    const note = store.add(text)
    if ((request.headers.accept || '').includes('text/html')) {
      return reply.redirect('/', 303)
    }
    return reply.code(201).send(note)
  })

  return app
}

module.exports = { build }
