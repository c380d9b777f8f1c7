/* A server made of nodemailer's smtp-server: one process, a message is read from its stream and forgotten.
 *
 *     node nodemailer.js --packages FOLDER [--tls starttls|implicit --certificate PEM --key PEM]
 *                        [--login USER:PASSWORD] PORT
 *
 * FOLDER is where npm has installed smtp-server.
 * SIGTERM prints "messages N" and ends it.
 */
'use strict';

const fs = require('node:fs');
const { createRequire } = require('node:module');
const path = require('node:path');
const { parseArgs } = require('node:util');

const BACKLOG = 4096;
const text = { type: 'string' };
const { values, positionals } = parseArgs({
    options: { packages: text, tls: text, certificate: text, key: text, login: text },
    allowPositionals: true,
});
const { SMTPServer } = createRequire(path.join(values.packages, 'package.json'))('smtp-server');
let messages = 0;

const options = {
    disabledCommands: [
        ...(values.tls === 'starttls' ? [] : ['STARTTLS']),
        ...(values.login === undefined ? ['AUTH'] : []),
    ],
    disableReverseLookup: true,
    logger: false,
    secure: values.tls === 'implicit',
    allowInsecureAuth: true,
    authMethods: ['PLAIN'],
    onAuth(auth, session, callback) {
        const right = `${auth.username}:${auth.password}` === values.login;
        callback(right ? null : new Error('Authentication failed'), { user: auth.username });
    },
    onData(stream, session, callback) {
        stream.on('end', () => {
            messages++;
            callback(null, 'OK');
        });
        stream.resume();
    },
};
if (values.tls !== undefined) {
    options.cert = fs.readFileSync(values.certificate);
    options.key = fs.readFileSync(values.key);
}
const server = new SMTPServer(options);
server.on('error', () => {}); // a client that leaves in the midst of it is no end of the server
server.listen({ port: Number(positionals[0]), host: '127.0.0.1', backlog: BACKLOG });
process.on('SIGTERM', () => {
    fs.writeSync(1, `messages ${messages}\n`);
    process.exit(0);
});
