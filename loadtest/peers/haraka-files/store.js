'use strict'
// A queue plugin that keeps a message as Haraka's own outbound queue does, and the folder too: write, sync the file, rename, sync the
// folder, then 250. One file a message: a line of JSON with the envelope, then the content.
//
// Haraka's own: `queue/test` writes to the temporary folder and syncs nothing; `queue/discard` keeps nothing; the outbound queue
// (hmail, qfile) writes with FsyncWriteStream, which syncs the file before it is closed, renames it, and does not sync the folder.
//
// It also answers what would otherwise cost a DNS question for each connection, and accepts every recipient at mx.test.

const fs = require('node:fs')
const path = require('node:path')

exports.register = function () {
    this.folder = process.env.STORE_FOLDER
    this.folder_fd = fs.openSync(this.folder, 'r')
    this.count = 0
}

exports.hook_lookup_rdns = (next, connection) => {
    // Replies are small and must not wait for each other's acknowledgements.
    if (!process.env.NAGLE)     connection.client.targetsocket.setNoDelay(true)
    next(OK, 'localhost')
}

exports.hook_rcpt = (next, connection, params) => {
    next(params[0].host.toLowerCase() === 'mx.test' ? OK : DENY)
}

exports.hook_queue = function (next, connection) {
    const transaction = connection.transaction
    const name = `${process.pid}.${this.count++}`
    const temporary = path.join(this.folder, `.${name}`)
    const fail = (error) => {
        connection.logerror(this, error.message)
        fs.unlink(temporary, () => {})
        next(DENYSOFT)
    }
    // flush: fsync before the file is closed.
    const file = fs.createWriteStream(temporary, { flags: 'wx', flush: true })
    file.once('error', fail)
    file.once('close', () => {
        if (file.errored) return
        fs.rename(temporary, path.join(this.folder, name), (rename_error) => {
            if (rename_error) return fail(rename_error)
            fs.fsync(this.folder_fd, (sync_error) => (sync_error ? fail(sync_error) : next(OK)))
        })
    })
    const envelope = { from: transaction.mail_from, to: transaction.rcpt_to }
    file.write(`${JSON.stringify(envelope)}\n`)
    transaction.message_stream.pipe(file)
}
