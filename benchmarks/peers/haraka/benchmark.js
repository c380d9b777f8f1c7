/* Haraka's plugin for a run: any recipient is right, a queued message is counted and forgotten. SIGTERM, which
 * Haraka leaves to the system, ends it, and each process prints "messages N" before.
 */
'use strict';

const cluster = require('node:cluster');
const fs = require('node:fs');

let messages = 0;

exports.register = function () {
    if (cluster.isPrimary) process.on('SIGTERM', end_all);
    else process.on('SIGTERM', end);
};

exports.hook_rcpt = (next) => next(OK);

function take(next, connection) {
    messages++;
    connection.transaction.notes.discard = true; // for queue/discard, which comes next
    next();
}

exports.hook_queue = take;
exports.hook_queue_outbound = take; // mail of those who have logged in

function end() {
    fs.writeSync(1, `messages ${messages}\n`);
    process.exit(0);
}

function end_all() {
    const workers = Object.values(cluster.workers ?? {});
    if (!workers.length) end();
    cluster.removeAllListeners('exit'); // Haraka would start them again
    cluster.on('exit', () => {
        if (!Object.keys(cluster.workers).length) process.exit(0);
    });
    for (const worker of workers) worker.process.kill('SIGTERM');
}
