package main

// config is WordPress's file of settings.
const config = "wp-config.php"

// configPHP reads the settings from the environment at each request, so that the file in the volume holds no secret and a container with
// other settings can use the same volume. Keys that nobody gives are not defined: WordPress then makes them once and keeps them in the
// database, where all containers of a service find the same ones. With keys per container a login would hold on one of them only.
const configPHP = `<?php
// Made by the image: the settings are the container's WORDPRESS_… variables.
foreach (['DB_NAME', 'DB_USER', 'DB_PASSWORD', 'DB_HOST', 'DB_CHARSET', 'DB_COLLATE'] as $setting) {
	define($setting, (string) getenv('WORDPRESS_' . $setting));
}
foreach (['AUTH_KEY', 'SECURE_AUTH_KEY', 'LOGGED_IN_KEY', 'NONCE_KEY', 'AUTH_SALT', 'SECURE_AUTH_SALT', 'LOGGED_IN_SALT', 'NONCE_SALT'] as $setting) {
	if ((string) getenv('WORDPRESS_' . $setting) !== '') {
		define($setting, getenv('WORDPRESS_' . $setting));
	}
}
$table_prefix = getenv('WORDPRESS_TABLE_PREFIX');
define('WP_DEBUG', !in_array(strtolower((string) getenv('WORDPRESS_DEBUG')), ['', '0', 'false', 'no', 'off'], true));

// A proxy in front that speaks TLS says so.
if (strpos($_SERVER['HTTP_X_FORWARDED_PROTO'] ?? '', 'https') !== false) {
	$_SERVER['HTTPS'] = 'on';
}
if ((string) getenv('WORDPRESS_CONFIG_EXTRA') !== '') {
	eval(getenv('WORDPRESS_CONFIG_EXTRA'));
}
defined('ABSPATH') || define('ABSPATH', __DIR__ . '/');
require_once ABSPATH . 'wp-settings.php';
`
