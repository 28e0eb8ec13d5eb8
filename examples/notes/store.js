'use strict'

const fs = require('node:fs')
const path = require('node:path')

const TEXT_MAX_BYTES = 4096
// The file is read and written whole, so it stays small: older notes go first.
const NOTES_MAX = 500

/**
 * Notes in one JSON file.
 *
 * Each change writes a temporary file, syncs it, renames it over the old one
 * and syncs the directory: a reader, and whoever starts after a power cut, finds
 * the old list or the new one. No other process writes here: of a service with
 * a volume, the old release has stopped before the new one starts.
 */
class NoteStore {
  constructor (directory) {
    this.directory = directory
    this.file = path.join(directory, 'notes.json')
    fs.mkdirSync(directory, { recursive: true })
  }

  /** All notes, newest first. */
  list () {
    try {
      return JSON.parse(fs.readFileSync(this.file, 'utf8'))
    } catch (error) {
      if (error.code === 'ENOENT') return []
      throw error
    }
  }

  add (text) {
    const notes = this.list()
    const note = { id: (notes[0]?.id ?? 0) + 1, at: new Date().toISOString(), text }
    this.#replace([note, ...notes].slice(0, NOTES_MAX))
    return note
  }

  #replace (notes) {
    const temporary = `${this.file}.${process.pid}.new`
    const fd = fs.openSync(temporary, 'w', 0o600)
    try {
      fs.writeSync(fd, JSON.stringify(notes, null, 1))
      fs.fsyncSync(fd)
    } finally {
      fs.closeSync(fd)
    }
    fs.renameSync(temporary, this.file)
    const directory = fs.openSync(this.directory, 'r')
    try {
      fs.fsyncSync(directory)
    } finally {
      fs.closeSync(directory)
    }
  }
}

module.exports = { NoteStore, TEXT_MAX_BYTES, NOTES_MAX }
