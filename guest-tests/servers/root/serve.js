// Node's streams as its documentation shows them.
const fs = require('fs');
require('http').createServer((request, response) => {
  fs.createReadStream('/var/www/html' + request.url).pipe(response);
}).listen(80);
